"""The tables of a report, and the notes that say how to read them."""

import math
from collections.abc import Sequence

from voco_llama.errors import DataError
from voco_llama.evaluation.results import BITS_PER_BYTE, IN_ORDER, NATS_PER_TOKEN, SHUFFLED
from voco_llama.report.aggregate import (
    PERCENT,
    Comparison,
    Estimate,
    Row,
    estimate,
    mean_over,
    paired_difference,
)
from voco_llama.report.paper import PaperTable
from voco_llama.report.selection import Selection
from voco_llama.text import TextTable

MISSING = "–"
PLUS_MINUS = "±"
AVERAGE = "Average"
ROUNDING = 1e-9
"""A standard error below it is that of equal values."""
SCIENCE_QA = ("SQA", "SQA-I", "scienceqa_img")
"""What its column is called: in our suite, in the paper, by lmms-eval.

Averages stand with it and without: bounds lie so close there (5.8 points in the paper, elsewhere 21 or more) that a
point is 17 of retention, and other papers' leads rest on it.
"""
UNITS = {
    "exact_match": "exact match in %",
    "gpt_eval_score": "accuracy in %",
    "seed_all": "accuracy in %",
    "pope_f1_score": "F1 in %",
    "mme_perception_score": "perception score, 200 a category",
}
"""Metric to what its scores are in; another metric is called by its own name."""


def cell(value: Estimate, scale: float = PERCENT, digits: int = 1, expected: int | None = None) -> str:
    """`mean ± error`, the error only where there is one; marked with its number of seeds if fewer than `expected`."""
    if not math.isfinite(value.mean):
        return MISSING
    text = f"{scale * value.mean:.{digits}f}"
    if math.isfinite(value.error):
        text += f" {PLUS_MINUS} {scale * value.error:.{digits}f}"
    return text + ("" if expected is None else fewer(value, expected))


def mean_count(value: float) -> str:
    """A mean number of things: whole where it is whole, else with one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def fewer(value: Estimate, expected: int) -> str:
    """`, n=2` where fewer seeds have the value than expected, else nothing."""
    return f", n={value.count}" if value.count < expected else ""


def scores_table(comparison: Comparison, selection: Selection) -> TextTable:
    """Cost, raw scores and the mean accuracy over shared benchmarks."""
    seeds, body = comparison.seeds, []
    for row in comparison.rows:
        cost = [mean_count(row.over_seeds(fact).mean) for fact in ("tokens_per_image", "kv_bytes_per_image")]
        scores = [_score(row, benchmark) for benchmark in comparison.columns]
        accuracy = cell(row.average("accuracy", comparison.shared), scale=1, digits=3)
        body.append([selection.label(row.name), *_of(row, seeds), *cost, *scores, accuracy])
    head = [*_first_columns(seeds), "Tokens", "KV bytes/image", *comparison.columns, "Mean accuracy"]
    return TextTable("Scores", head, body)


def _first_columns(seeds: Sequence[int]) -> list[str]:
    return ["Row", "Seeds"] if len(seeds) > 1 else ["Row"]


def _of(row: Row, seeds: Sequence[int]) -> list[str]:
    """How many of the seeds a row has, where there are several."""
    if len(seeds) == 1:
        return []
    count = len(row.results)
    return [str(count) if count == len(seeds) else f"{count} of {len(seeds)}"]


def _score(row: Row, benchmark: str) -> str:
    in_percent = any(described["full"] == 1 for described in row.described(benchmark))
    return cell(row.of("value", benchmark), PERCENT if in_percent else 1, expected=len(row.results))


def retention_table(comparison: Comparison, selection: Selection) -> TextTable:
    """Retention with its standard error, the plain ratio in brackets; averages over shared benchmarks."""
    body, averages = [], averages_over(comparison.shared)
    for row in comparison.rows:
        both = [(row.of("retention", name), row.of("plain_ratio", name)) for name in comparison.columns]
        both += [(row.average("retention", over), row.average("plain_ratio", over)) for over in averages.values()]
        body.append([selection.label(row.name), *(_pair(kept, ratio, len(row.results)) for kept, ratio in both)])
    return TextTable("Retention in % (plain ratio in %)", ["Row", *comparison.columns, *averages], body)


def averages_over(columns: Sequence[str]) -> dict[str, Sequence[str]]:
    """What averages of retention are called -> the benchmarks they are over: all, and all but ScienceQA where it is."""
    others = [name for name in columns if name not in SCIENCE_QA]
    without = [name for name in columns if name in SCIENCE_QA]
    return {AVERAGE: columns} | ({f"{AVERAGE} without {without[0]}": others} if without and others else {})


def _pair(kept: Estimate, ratio: Estimate, expected: int) -> str:
    if not math.isfinite(kept.mean) and not math.isfinite(ratio.mean):
        return MISSING
    plain = f"{PERCENT * ratio.mean:.1f}" if math.isfinite(ratio.mean) else MISSING
    return f"{cell(kept)} ({plain})" + (fewer(kept, expected) if kept.count else "")


def differences_table(comparison: Comparison, selection: Selection) -> TextTable | None:
    """The selection's pairs of rows, compared seed by seed; None if no pair has both rows."""
    rows = {row.name: row for row in comparison.rows}
    body, averages = [], averages_over(comparison.shared)
    for first, second in selection.pairs:
        if first in rows and second in rows:
            differences = [paired_difference(rows[first], rows[second], over) for over in averages.values()]
            name = f"{selection.label(first)} minus {selection.label(second)}"
            cells = [text for difference in differences for text in (cell(difference), _in_errors(difference))]
            body.append([name, str(differences[0].count), *cells])
    head = ["Difference", "Seeds", "Points", "In standard errors"]
    head += [column + name.removeprefix(AVERAGE) for name in list(averages)[1:] for column in head[2:]]
    return TextTable("Differences of average retention, paired by seed", head, body) if body else None


def _in_errors(difference: Estimate) -> str:
    return f"{difference.mean / difference.error:.1f}" if difference.error > ROUNDING else MISSING


def reference_tables(comparison: Comparison, selection: Selection, paper: PaperTable) -> list[TextTable]:
    """Each of our rows above its counterpart in the paper, over the benchmarks that both have.

    The paper's own average over all of its columns stands apart from the average over these benchmarks.

    Raises:
        DataError: There is no such benchmark.
    """
    both = [benchmark for benchmark in comparison.shared if benchmark in paper.counterparts]
    if not both:
        raise DataError(
            f"the paper's {paper.number} has {', '.join(paper.counterparts)}, all rows together have"
            f" {', '.join(comparison.shared) or 'no benchmark'}: leave the reference out, or evaluate one of those"
        )
    theirs, averages = [paper.counterparts[benchmark] for benchmark in both], averages_over(both)
    scores, kept = [], []
    for row in comparison.rows:
        counterpart = paper.rows.get(selection.paper(row.name))
        if counterpart is None:
            continue
        ours, label = selection.label(row.name), f"paper: {counterpart.label}"
        scores.append([ours, *(_score(row, benchmark) for benchmark in both)])
        scores.append([label, *(f"{counterpart.scores[column]:.1f}" for column in theirs)])
        cells = [cell(row.of("retention", benchmark), expected=len(row.results)) for benchmark in both]
        kept.append([ours, *cells, *(cell(row.average("retention", over)) for over in averages.values()), ""])
        shares = [counterpart.retentions[column] for column in theirs]
        means = (
            mean_over(counterpart.retentions[paper.counterparts[one]] for one in over) for over in averages.values()
        )
        kept.append([label, *(f"{PERCENT * share:.1f}" for share in (*shares, *means, counterpart.average))])
    title = f"beside the paper's {paper.number}"
    over = f"All {len(paper.columns)} of the paper"
    return [
        TextTable(f"Scores {title}", ["Row", *both], scores),
        TextTable(f"Retention in % {title}", ["Row", *both, *averages, over], kept),
    ]


def clips_table(rows: Sequence[Row], selection: Selection) -> TextTable:
    """Exact match in both orders of the frames."""
    seeds, body = sorted({seed for row in rows for seed in row.results}), []
    for row in rows:
        cost = (f"{row.fact(fact):,}" for fact in ("num_frames", "tokens_per_clip", "kv_bytes_per_clip"))
        orders = (cell(row.over_seeds(order)) for order in (IN_ORDER, SHUFFLED))
        asked = sum(result["questions"] for result in row.results.values())
        body.append([selection.label(row.name), *_of(row, seeds), *cost, *orders, str(asked)])
    head = [*_first_columns(seeds), "Frames", "Tokens", "KV bytes/clip", "In order", "Shuffled", "Questions"]
    return TextTable("Clips, exact match in %", head, body)


def texts_table(rows: Sequence[Row], selection: Selection) -> TextTable:
    """The loss on plain text: bits a byte on each text, and both rates on all of them."""
    seeds, body = sorted({seed for row in rows for seed in row.results}), []
    names = list(dict.fromkeys(name for row in rows for name in row.fact("texts")))
    for row in rows:
        results = row.results.values()
        each = (
            estimate(result["texts"][name][BITS_PER_BYTE] for result in results if name in result["texts"])
            for name in names
        )
        both = (row.over_seeds(rate) for rate in (BITS_PER_BYTE, NATS_PER_TOKEN))
        body.append(
            [selection.label(row.name), *_of(row, seeds), *(cell(v, scale=1, digits=3) for v in (*each, *both))]
        )
    head = [*_first_columns(seeds), *names, "All", "All, nats a token"]
    return TextTable("Plain text, bits a byte (less is better)", head, body)


def text_notes(rows: Sequence[Row]) -> list[str]:
    """How the numbers of `texts_table` came about."""
    kinds = sorted({(row.fact("window"), row.fact("stride")) for row in rows})
    listed = "; ".join(f"windows of {window} tokens, {stride} of them predicted" for window, stride in kinds)
    return [f"Plain text: {listed}; the two added tokens are left out of the softmax."] if rows else []


def paper_table(table: PaperTable) -> TextTable:
    """A table of the paper by itself: raw scores, retentions computed from them, and the average it prints."""
    body, averages = [], averages_over(table.columns)
    for row in table.rows.values():
        cells = [f"{row.scores[column]:.1f} ({PERCENT * row.retentions[column]:.1f})" for column in table.columns]
        printed = f"{row.printed['average']:.1f}" if "average" in row.printed else MISSING
        means = (mean_over(row.retentions[column] for column in over) for over in averages.values())
        body.append([row.label, *cells, *(f"{PERCENT * mean:.1f}" for mean in means), printed])
    head = ["Row", *table.columns, *averages, "As printed"]
    return TextTable(f"The paper's {table.number}: {table.title}; scores (retention in %)", head, body)


def notes(comparison: Comparison, selection: Selection, paper: PaperTable | None) -> list[str]:
    """How the numbers came about, and what is wrong or missing."""
    upper, lower = comparison.bounds
    kinds = sorted({row.fact("kv_dtype") for row in comparison.rows})
    found = [
        f"Retention is (row - {lower.name}) / ({upper.name} - {lower.name}), the plain ratio row / {upper.name}.",
        _units(comparison),
        "Mean accuracy is the mean over benchmarks of the share of questions answered right, 0 to 1.",
        f"Tokens are what the language model keeps of an image, KV bytes their keys and values ({', '.join(kinds)}).",
        *_quality_notes(comparison, selection),
        *_seed_notes(comparison, selection),
        *_missing_notes(comparison, selection),
        *(
            f"{name}: bounds lie close there, so that few questions move a retention, and an average with it, by much."
            for name in list(averages_over(comparison.shared))[1:]
        ),
    ]
    found += [
        f"{lower.name} was not measured on the weights of {upper.name} (seed {seed}): it is not the paper's lower"
        " bound."
        for seed, result in upper.results.items()
        if lower.results.get(seed, result)["checkpoint_fingerprint"] != result["checkpoint_fingerprint"]
    ]
    results = [result for row in (*comparison.rows, *comparison.bounds) for result in row.results.values()]
    if any(result["limit"] for result in results):
        found.append("Some rows were evaluated on a part of the questions only.")
    found += [
        f"INCOMPLETE: {result['row']} (seed {result['seed']}) left {len(result['failures'])} questions unanswered,"
        " which count as wrong, or unscored, which do not count."
        for result in results
        if result.get("failures")
    ]
    unreadable = _unreadable(comparison, selection)
    if unreadable:
        found.append(f"Answers that are neither yes nor no, or name no option: {'; '.join(unreadable)}.")
    if selection.pairs:
        found.append(
            "Differences in standard errors are t statistics with n - 1 degrees of freedom, n the common seeds."
        )
    if paper is not None:
        found.append(
            f"Rows that begin with `paper:` are the numbers of the paper ({paper.number}), of other models on other"
            " data; none of our means contains them, and their retentions are computed from the paper's scores."
        )
    return found


def _units(comparison: Comparison) -> str:
    """What the scores of the columns at hand are in: known units first, each with its columns."""
    found: dict[str, list[str]] = {unit: [] for unit in UNITS.values()}
    for benchmark in comparison.columns:
        described = next(d for row in (*comparison.rows, *comparison.bounds) for d in row.described(benchmark))
        own = f"{described['metric']} {'in %' if described['full'] == 1 else 'of {:g}'.format(described['full'])}"
        found.setdefault(UNITS.get(described["metric"], own), []).append(benchmark)
    return "; ".join(f"{', '.join(names)}: {unit}" for unit, names in found.items() if names) + "."


def _quality_notes(comparison: Comparison, selection: Selection) -> list[str]:
    adaptive = {
        selection.label(row.name): row.fact("quality") for row in comparison.rows if row.fact("quality") is not None
    }
    if not adaptive:
        return []
    listed = "; ".join(f"{name}: {quality:g}" for name, quality in adaptive.items())
    return [
        "Rows that choose the number of tokens by the image have the mean over images and seeds; the divergence allowed"
        f" in nats an answer token ({listed})."
    ]


def _seed_notes(comparison: Comparison, selection: Selection) -> list[str]:
    seeds = comparison.seeds
    if len(seeds) == 1:
        return [f"One seed ({seeds[0]}): there is no standard error."]
    found = [
        f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))}) {PLUS_MINUS} standard error (sample standard"
        " deviation / sqrt(n)); each seed is measured against its own bounds."
    ]
    few = [row for row in comparison.rows if len(row.results) < len(seeds)]
    if few:
        listed = "; ".join(f"{selection.label(row.name)}: {', '.join(map(str, row.results))}" for row in few)
        found.append(f"Rows that lack some of the seeds ({listed}) are means over fewer seeds than the others.")
    return found


def _missing_notes(comparison: Comparison, selection: Selection) -> list[str]:
    found = []
    names = {row.name for row in comparison.rows}
    absent = [selection.label(name) for name in selection.names or () if name not in names]
    if absent:
        found.append(f"Rows of the table without a result: {', '.join(absent)}.")
    if comparison.shared != comparison.columns:
        found.append(
            f"{MISSING} marks what is missing or undefined; averages are over"
            f" {', '.join(comparison.shared) or 'nothing'} only."
        )
    undefined = [
        f"{benchmark} with seed {seed}"
        for seed, result in comparison.bounds[0].results.items()
        for benchmark in comparison.shared
        if not math.isfinite(result["benchmarks"][benchmark]["retention"])
    ]
    if undefined:
        found.append(
            f"The bounds are equal in {', '.join(undefined)}: no retention there, and averages of retention leave it"
            " out; those of the plain ratio and the mean accuracy do not."
        )
    return found


def _unreadable(comparison: Comparison, selection: Selection) -> list[str]:
    found = []
    for row in comparison.rows:
        for benchmark in comparison.columns:
            described = row.described(benchmark)
            count = sum(one["details"].get("unreadable", 0) for one in described)
            if count:
                asked = sum(one["questions"] for one in described)
                found.append(f"{selection.label(row.name)} {benchmark} {count:.0f} of {asked}")
    return found
