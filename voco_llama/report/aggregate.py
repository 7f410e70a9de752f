"""Result files to rows: what each seed measured, and means and standard errors over seeds.

Retention is how much of the upper bound's lead over the lower bound a compressed model keeps (paper, section 4.2). A
seed is another world and other training, so a score is compared with the bounds of its own seed only: retentions are
computed within a seed and averaged afterwards.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from voco_llama.errors import DataError
from voco_llama.evaluation.results import FACTS, MEASURED, TEXT_KIND

Result = dict[str, Any]
PERCENT = 100.0


def retention(result: float, upper: float, lower: float) -> float:
    """`(result - lower) / (upper - lower)` of scores in one unit; NaN where the bounds are equal.

    It is 1 at the upper bound, the model whose text sees vision, and 0 at the lower: the same weights under the VoCo
    mask, never trained to compress.
    """
    return (result - lower) / (upper - lower) if upper != lower else math.nan


def plain_ratio(result: float, upper: float) -> float:
    """`result / upper`; NaN where the upper bound is 0."""
    return result / upper if upper else math.nan


def mean_over(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: NaN if there is no value.
        error: Standard error of the mean: sample standard deviation / sqrt(count). NaN for fewer than two values.
        count: Number of values.
    """

    mean: float
    error: float
    count: int


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and standard error of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return Estimate(statistics.fmean(finite) if finite else math.nan, error, len(finite))


Measure = Literal["value", "accuracy", "plain_ratio", "retention"]


@dataclass(frozen=True)
class Row:
    """All seeds of one row.

    Attributes:
        name: Of the row.
        results: Seed to what its file holds, by rising seed. In a `Comparison`, each benchmark also has `plain_ratio`
            and `retention` (1 at the upper bound; NaN: undefined).
    """

    name: str
    results: Mapping[int, Result]

    def fact(self, name: str) -> Any:
        """A value of the result files that is the same for all seeds (one of `FACTS`)."""
        return next(iter(self.results.values()))[name]

    @property
    def num_tokens(self) -> float | None:
        """VoCo tokens an image, a mean where they were chosen by the image; None: none are read."""
        by_image = self.fact("num_voco") is not None and self.fact("quality") is not None
        return self.over_seeds("tokens_per_image").mean if by_image else self.fact("num_voco")

    def described(self, benchmark: str) -> list[dict[str, Any]]:
        """What is known of a benchmark, for each seed that has it."""
        found = (result["benchmarks"].get(benchmark) for result in self.results.values())
        return [described for described in found if described is not None]

    def of(self, measure: Measure, benchmark: str) -> Estimate:
        """A measure of one benchmark over the seeds that have it."""
        return estimate(described[measure] for described in self.described(benchmark))

    def over_seeds(self, fact: str) -> Estimate:
        """Mean and standard error of a number that the files state."""
        return estimate(result[fact] for result in self.results.values())

    def averages(self, measure: Measure, columns: Sequence[str]) -> dict[int, float]:
        """Each seed's mean over benchmarks, NaN left out."""
        return {
            seed: mean_over(result["benchmarks"][name][measure] for name in columns)
            for seed, result in self.results.items()
        }

    def average(self, measure: Measure, columns: Sequence[str]) -> Estimate:
        """Each seed's mean over benchmarks, then the mean over seeds."""
        return estimate(self.averages(measure, columns).values())


@dataclass(frozen=True)
class Comparison:
    """Rows that can be compared.

    Attributes:
        rows: In the order of the table.
        bounds: The rows of the upper and the lower bound, whether they are among `rows` or not.
        columns: Benchmarks that any of the rows has.
        shared: Benchmarks that every row has with every seed: what averages are over.
        seeds: All seeds of `rows`, rising.
    """

    rows: tuple[Row, ...]
    bounds: tuple[Row, Row]
    columns: tuple[str, ...]
    shared: tuple[str, ...]
    seeds: tuple[int, ...]


def rows_of(results: Iterable[Result]) -> dict[str, Row]:
    """Results grouped by row."""
    by_row: dict[str, dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        by_row.setdefault(result["row"], {})[result["seed"]] = result
    return {name: Row(name, by_seed) for name, by_seed in by_row.items()}


def compare(results: Sequence[Result], upper: str, lower: str, names: Collection[str] | None = None) -> Comparison:
    """Group benchmark results by row, and measure each against the bounds of its seed.

    Args:
        results: Of the benchmarks, checked by `check_results`.
        upper: Row of the upper bound.
        lower: Row of the lower bound.
        names: Rows to take, in this order; those without a result are left out. None: all, the upper bound first, then
            by falling (mean) number of VoCo tokens, then the lower bound and rows without an image.

    Raises:
        DataError: A bound is missing for a seed of one of the rows.
    """

    def order(row: Row) -> tuple[int, int, str]:
        rank = 0 if row.name == upper else 2 if row.name == lower else 3 if row.fact("condition") == "blind" else 1
        return rank, -(row.num_tokens or 0), row.name

    found = rows_of(results)
    if names is None:
        names = [row.name for row in sorted(found.values(), key=order)]
    taken = [name for name in names if name in found]
    for name in taken or (upper,):
        _check_bounds(name, found, upper, lower)
    rows = {name: _measured(found[name], found[upper], found[lower]) for name in dict.fromkeys((*taken, upper, lower))}
    benchmarks = [result["benchmarks"] for row in rows.values() for result in row.results.values()]
    return Comparison(
        tuple(rows[name] for name in taken),
        (rows[upper], rows[lower]),
        tuple(dict.fromkeys(chain.from_iterable(benchmarks))),
        tuple(name for name in benchmarks[0] if all(name in others for others in benchmarks)),
        tuple(sorted({seed for name in taken for seed in rows[name].results})),
    )


def _check_bounds(name: str, rows: Mapping[str, Row], upper: str, lower: str) -> None:
    for bound, row in (("upper", upper), ("lower", lower)):
        if row not in rows:
            raise DataError(
                f"the {bound} bound {row!r} is not among the rows {', '.join(rows) or '(none)'}: evaluate it into the"
                f" same folder, or name the row that it is ({bound}=...)"
            )
        lacking = sorted(rows[name].results.keys() - rows[row].results.keys())
        if lacking:
            raise DataError(
                f"row {name!r} has seed {lacking[0]}, the {bound} bound {row!r} has not: evaluate the bound with that"
                " seed too, or leave the seed out (seeds=[...])"
            )


def _measured(row: Row, upper: Row, lower: Row) -> Row:
    def value(of: Row, seed: int, benchmark: str) -> float:
        return of.results.get(seed, {"benchmarks": {}})["benchmarks"].get(benchmark, {"value": math.nan})["value"]

    results = {}
    for seed, result in row.results.items():
        benchmarks = {}
        for name, described in result["benchmarks"].items():
            own, high, low = (value(of, seed, name) for of in (row, upper, lower))
            measured = {"plain_ratio": plain_ratio(own, high), "retention": retention(own, high, low)}
            benchmarks[name] = described | measured
        results[seed] = result | {"benchmarks": benchmarks}
    return Row(row.name, results)


def paired_difference(first: Row, second: Row, columns: Sequence[str]) -> Estimate:
    """First minus second: the average retention over `columns`, seed by seed where both have one, then over seeds."""
    minuend, subtrahend = (row.averages("retention", columns) for row in (first, second))
    return estimate(minuend[seed] - subtrahend[seed] for seed in minuend if seed in subtrahend)


def check_results(results: Mapping[Path, Result], allow_limited: bool) -> None:
    """Refuse files that cannot stand in one table; `allow_limited` takes rows on a part of the questions.

    Raises:
        DataError: Two files are of one row and seed; a row is limited or incomplete; within a seed, rows were asked
            different questions; the seeds of a row, or a benchmark's unit, differ in what must be the same.
    """
    files: dict[tuple[str, str, int], Path] = {}
    asked: dict[tuple[str, int], tuple[str, str, int | None]] = {}
    for file, result in results.items():
        name, seed = result["row"], result["seed"]
        other_file = files.setdefault((result["kind"], name, seed), file)
        if other_file is not file:
            raise DataError(
                f"two results of {result['kind']} are named {name!r} with seed {seed} ({other_file}, {file}): remove"
                " one, or rename a row"
            )
        if result["limit"] is not None and not allow_limited:
            raise DataError(
                f"row {name!r} was evaluated on {result['limit']} questions only: evaluate it without a limit, or"
                " set allow_limited=true"
            )
        if result.get("failures") and not allow_limited:
            first, count = result["failures"][0], len(result["failures"])
            raise DataError(
                f"row {name!r} left {count} questions unanswered (first: {first['id']}, {first['error']}): evaluate it"
                " again, or set allow_limited=true"
            )
        for benchmark, described in result.get("benchmarks", {}).items():
            fingerprint = described["data_fingerprint"]
            first = asked.setdefault((benchmark, seed), (name, fingerprint, result["limit"]))
            other, other_fingerprint, limit = first
            if fingerprint != other_fingerprint:
                limits = "" if limit == result["limit"] else f" (limit {limit} and {result['limit']})"
                raise DataError(
                    f"rows {other!r} and {name!r} were asked different questions of {benchmark} with seed"
                    f" {seed}{limits}: evaluate them on the same files, with the same limit"
                )
    _check_alike(results)


def _check_alike(results: Mapping[Path, Result]) -> None:
    """What a mean over seeds takes for granted: a row is one method at one cost, a benchmark one unit."""
    seen: dict[tuple[str, ...], tuple[Any, int, str]] = {}
    for result in results.values():
        name, seed, kind = result["row"], result["seed"], result["kind"]
        facts = {
            (f"row {name!r}" if kind != TEXT_KIND else "plain text", fact, kind): result[fact]
            for fact in FACTS[kind]
            if fact not in MEASURED or result.get("quality") is None
        }
        for benchmark, described in result.get("benchmarks", {}).items():
            facts |= {(benchmark, fact): described[fact] for fact in ("metric", "full")}
        for key, value in facts.items():
            first, first_seed, first_name = seen.setdefault(key, (value, seed, name))
            if value != first:
                raise DataError(
                    f"{key[0]} has {key[1]} {first} in row {first_name!r} with seed {first_seed} and {value} in row"
                    f" {name!r} with seed {seed}: they cannot be averaged; rename a row, or evaluate it again"
                )
