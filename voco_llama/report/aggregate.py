"""Result files to rows: what each seed measured, and means and standard errors over seeds.

Retention is how much of the upper bound's lead over the lower bound a compressed model keeps (paper, section 4.2). A
seed is another world and other training, so a score is compared with the bounds of its own seed only: retentions are
computed within a seed and averaged afterwards.
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voco_llama.errors import DataError
from voco_llama.evaluation.results import BENCHMARKS_KIND, CLIPS_KIND

Result = Mapping[str, Any]
PERCENT = 100.0
FACTS = {
    BENCHMARKS_KIND: ("condition", "num_voco", "tokens_per_image", "kv_bytes_per_image", "kv_dtype"),
    CLIPS_KIND: ("num_voco", "num_frames", "tokens_per_clip", "kv_bytes_per_clip", "kv_dtype"),
}
"""What must be the same for all seeds of a row."""


def retention(result: float, upper: float, lower: float) -> float:
    """`(result - lower) / (upper - lower)`: 1 at the upper bound, 0 at the lower; NaN where the bounds are equal.

    Args:
        result: A row's score on one benchmark, in any unit that the three share.
        upper: The model whose text sees vision.
        lower: The same weights under the VoCo mask, never trained to compress.
    """
    return (result - lower) / (upper - lower) if upper != lower else math.nan


def plain_ratio(result: float, upper: float) -> float:
    """`result / upper`; NaN where the upper bound is 0."""
    return result / upper if upper else math.nan


def mean_over(values: Mapping[str, float], columns: Sequence[str]) -> float:
    """Mean of the finite values in these columns; NaN if there is none."""
    finite = [values[name] for name in columns if math.isfinite(values[name])]
    return sum(finite) / len(finite) if finite else math.nan


@dataclass(frozen=True)
class Estimate:
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


@dataclass(frozen=True)
class SeedRow:
    """One result file of the benchmarks and, by benchmark, what follows from it. NaN: undefined.

    Attributes:
        result: The file's content.
        values: Scores, in the benchmarks' own units.
        ratios: Plain ratios: 1 at the upper bound.
        retentions: 1 at the upper bound, 0 at the lower.
    """

    result: Result
    values: Mapping[str, float]
    ratios: Mapping[str, float]
    retentions: Mapping[str, float]

    @property
    def seed(self) -> int:
        return self.result["seed"]


Measure = Literal["values", "ratios", "retentions"]


@dataclass(frozen=True)
class Row:
    """All seeds of one row, by rising seed."""

    name: str
    by_seed: tuple[SeedRow, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(one.seed for one in self.by_seed)

    def fact(self, name: str) -> Any:
        """A value of the result files that is the same for all seeds (one of `FACTS`)."""
        return self.by_seed[0].result[name]

    def over_seeds(self, measure: Callable[[SeedRow], float]) -> Estimate:
        """Mean and standard error of a measure of one seed; NaN leaves a seed out."""
        return estimate(measure(one) for one in self.by_seed)

    def of(self, measure: Measure, benchmark: str) -> Estimate:
        """A measure of one benchmark over the seeds that have it."""
        return self.over_seeds(lambda one: getattr(one, measure).get(benchmark, math.nan))

    def average(self, measure: Measure, columns: Sequence[str]) -> Estimate:
        """Each seed's mean over benchmarks, then the mean over seeds."""
        return self.over_seeds(lambda one: mean_over(getattr(one, measure), columns))


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


def compare(results: Sequence[Result], upper: str, lower: str, names: Collection[str] | None = None) -> Comparison:
    """Group benchmark results by row, and measure each against the bounds of its seed.

    Args:
        results: Of the benchmarks, checked by `check_results`.
        upper: Row of the upper bound.
        lower: Row of the lower bound.
        names: Rows to take, in this order; those without a result are left out. None: all, the upper bound first, then
            by falling number of VoCo tokens, then the lower bound and rows without an image.

    Raises:
        DataError: A bound is missing for a seed of one of the rows.
    """
    by_row: dict[str, dict[int, Result]] = {}
    for result in results:
        by_row.setdefault(result["row"], {})[result["seed"]] = result
    found = sorted(by_row, key=lambda name: _order(next(iter(by_row[name].values())), upper, lower))
    taken = found if names is None else [name for name in names if name in by_row]
    for name in taken or (upper,):
        _check_bounds(name, by_row, upper, lower)
    rows = {name: _row(name, by_row, upper, lower) for name in dict.fromkeys((*taken, upper, lower))}
    measured = [one.values for row in rows.values() for one in row.by_seed]
    return Comparison(
        tuple(rows[name] for name in taken),
        (rows[upper], rows[lower]),
        tuple(dict.fromkeys(name for values in measured for name in values)),
        tuple(name for name in measured[0] if all(name in values for values in measured)),
        tuple(sorted({seed for name in taken for seed in by_row[name]})),
    )


def _order(result: Result, upper: str, lower: str) -> tuple[int, int, str]:
    name = result["row"]
    rank = 0 if name == upper else 2 if name == lower else 3 if result["condition"] == "blind" else 1
    return rank, -(result["num_voco"] or 0), name


def _check_bounds(name: str, by_row: Mapping[str, Mapping[int, Result]], upper: str, lower: str) -> None:
    for bound, row in (("upper", upper), ("lower", lower)):
        if row not in by_row:
            raise DataError(
                f"the {bound} bound {row!r} is not among the rows {', '.join(by_row) or '(none)'}: pass its file"
            )
        lacking = sorted(set(by_row[name]) - set(by_row[row]))
        if lacking:
            raise DataError(
                f"row {name!r} has seed {lacking[0]}, the {bound} bound {row!r} has not: evaluate the bound with that"
                " seed too, or leave the seed out (seeds=[...])"
            )


def _row(name: str, by_row: Mapping[str, Mapping[int, Result]], upper: str, lower: str) -> Row:
    measured = []
    for seed, result in sorted(by_row[name].items()):
        values = _values(result)
        uppers, lowers = (_values(by_row[bound].get(seed, {})) for bound in (upper, lower))
        bounds = {key: (uppers.get(key, math.nan), lowers.get(key, math.nan)) for key in values}
        ratios = {key: plain_ratio(value, bounds[key][0]) for key, value in values.items()}
        kept = {key: retention(value, *bounds[key]) for key, value in values.items()}
        measured.append(SeedRow(result, values, ratios, kept))
    return Row(name, tuple(measured))


def _values(result: Result) -> dict[str, float]:
    return {name: described["value"] for name, described in result.get("benchmarks", {}).items()}


def paired_difference(first: Row, second: Row, columns: Sequence[str]) -> Estimate:
    """First minus second: the average retention over `columns`, seed by seed where both have one, then over seeds."""
    others = {one.seed: mean_over(one.retentions, columns) for one in second.by_seed}
    return estimate(
        mean_over(one.retentions, columns) - others[one.seed] for one in first.by_seed if one.seed in others
    )


def check_results(results: Mapping[Path, Result], allow_limited: bool) -> None:
    """Refuse files that cannot stand in one table.

    Args:
        results: File to what it holds.
        allow_limited: Take rows that were evaluated on a part of the questions.

    Raises:
        DataError: Two files are of one row and seed; a row is limited or incomplete; within a seed, rows were asked
            different questions; the seeds of a row, or a benchmark's unit, differ in what must be the same.
    """
    files: dict[tuple[str, str, int], Path] = {}
    asked: dict[tuple[str, int], tuple[str, str]] = {}
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
                f"row {name!r} was evaluated on {result['limit']} questions only: evaluate it without a limit, or allow"
                " limited rows"
            )
        if result.get("failures") and not allow_limited:
            first, count = result["failures"][0], len(result["failures"])
            raise DataError(
                f"row {name!r} left {count} questions unanswered (first: {first['id']}, {first['error']}): evaluate it"
                " again, or allow limited rows"
            )
        for benchmark, described in result.get("benchmarks", {}).items():
            fingerprint = described["data_fingerprint"]
            other, other_fingerprint = asked.setdefault((benchmark, seed), (name, fingerprint))
            if fingerprint != other_fingerprint:
                raise DataError(
                    f"rows {other!r} and {name!r} were asked different questions of {benchmark} with seed {seed}:"
                    " evaluate them on the same files"
                )
    _check_alike(results)


def _check_alike(results: Mapping[Path, Result]) -> None:
    """What a mean over seeds takes for granted: a row is one method at one cost, a benchmark one unit."""
    seen: dict[tuple[str, ...], tuple[Any, int, str]] = {}
    for result in results.values():
        name, seed, kind = result["row"], result["seed"], result["kind"]
        facts = {(f"row {name!r}", fact, kind): result[fact] for fact in FACTS[kind]}
        for benchmark, described in result.get("benchmarks", {}).items():
            facts |= {(benchmark, fact): described[fact] for fact in ("metric", "full")}
        for key, value in facts.items():
            first, first_seed, first_name = seen.setdefault(key, (value, seed, name))
            if value != first:
                raise DataError(
                    f"{key[0]} has {key[1]} {first} in row {first_name!r} with seed {first_seed} and {value} in row"
                    f" {name!r} with seed {seed}: they cannot be averaged; rename a row, or evaluate it again"
                )
