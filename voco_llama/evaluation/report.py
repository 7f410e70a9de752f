"""`report`: result files to tables (terminal, Markdown, CSV) and a plot; no number that does not come from a file."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voco_llama.errors import DataError
from voco_llama.evaluation.plot import plot_retention
from voco_llama.evaluation.results import BENCHMARKS_KIND, read_result
from voco_llama.evaluation.retention import mean_over, plain_ratio, retention, shared_columns
from voco_llama.provenance import write_atomically

MISSING = "–"
MARKDOWN_FILE, CSV_FILE, PLOT_FILE = "report.md", "report.csv", "retention.png"


@dataclass(frozen=True)
class ReportRow:
    """One row: its result file's content and, by benchmark, what follows from it. NaN: undefined."""

    result: dict[str, Any]
    values: dict[str, float]
    ratios: dict[str, float]
    retentions: dict[str, float]

    @property
    def name(self) -> str:
        return self.result["row"]


def report(
    results: Sequence[Path], output: Path, upper: str = "upper", lower: str = "lower", allow_limited: bool = False
) -> str:
    """Write `report.md`, `report.csv` and `retention.png` to a folder.

    Args:
        results: Files of `evaluate` and `evaluate_clips`.
        output: The folder.
        upper: Row of the upper bound.
        lower: Row of the lower bound: the upper bound's weights under the VoCo mask.
        allow_limited: Take rows that were evaluated on a part of the questions.

    Returns:
        The text of `report.md`, whose tables are aligned to be read in a terminal.

    Raises:
        DataError: A file is no result, rows share a name or were asked different questions, a bound is missing, or a
            row is limited.
    """
    read = [read_result(file) for file in results]
    _check(read, allow_limited)
    benchmark_results = [result for result in read if result["kind"] == BENCHMARKS_KIND]
    clip_results = [result for result in read if result["kind"] != BENCHMARKS_KIND]
    rows = _rows(benchmark_results, upper, lower)
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    shared = shared_columns([row.values for row in rows])
    plotted = [
        (row.result["num_voco"], row.retentions)
        for row in rows
        if row.result["condition"] == "voco" and row.name != lower and math.isfinite(mean_over(row.retentions, shared))
    ]
    sections = [
        "# Report",
        _scores_table(rows, columns),
        _retention_table(rows, columns, shared),
        *([_clips_table(clip_results)] if clip_results else []),
        _notes(rows, columns, shared, upper, lower, allow_limited),
    ]
    if plotted:
        sections.append(f"![Retention against VoCo tokens an image]({PLOT_FILE})")
        plot_retention(plotted, shared, output / PLOT_FILE)
    text = "\n\n".join(sections) + "\n"
    write_atomically(output / MARKDOWN_FILE, text)
    write_atomically(output / CSV_FILE, _csv(rows))
    return text


def _check(results: Sequence[dict[str, Any]], allow_limited: bool) -> None:
    seen: set[tuple[str, str]] = set()
    fingerprints: dict[str, tuple[str, str]] = {}
    for result in results:
        name = result["row"]
        if (result["kind"], name) in seen:
            raise DataError(f"two results of {result['kind']} are named {name!r}: pass one of them, or rename a row")
        seen.add((result["kind"], name))
        if result["limit"] is not None and not allow_limited:
            raise DataError(
                f"row {name!r} was evaluated on {result['limit']} questions only: evaluate it without a limit, or allow"
                " limited rows"
            )
        for benchmark, described in result.get("benchmarks", {}).items():
            other, fingerprint = fingerprints.setdefault(benchmark, (name, described["data_fingerprint"]))
            if described["data_fingerprint"] != fingerprint:
                raise DataError(
                    f"rows {other!r} and {name!r} were asked different questions of {benchmark}: evaluate them on the"
                    " same files"
                )


def _rows(results: Sequence[dict[str, Any]], upper: str, lower: str) -> list[ReportRow]:
    """All rows, upper bound first, then by falling number of VoCo tokens, then the lower bound and blind rows."""
    by_name = {result["row"]: _values(result) for result in results}
    for bound, name in (("upper", upper), ("lower", lower)):
        if name not in by_name:
            raise DataError(
                f"the {bound} bound {name!r} is not among the rows {', '.join(by_name) or '(none)'}: pass its file"
            )

    def order(result: dict[str, Any]) -> tuple[int, int, str]:
        rank = (
            0 if result["row"] == upper else 2 if result["row"] == lower else 3 if result["condition"] == "blind" else 1
        )
        return rank, -(result["num_voco"] or 0), result["row"]

    rows = []
    for result in sorted(results, key=order):
        values = by_name[result["row"]]
        ratios = {name: plain_ratio(v, by_name[upper].get(name, math.nan)) for name, v in values.items()}
        kept = {
            name: retention(v, by_name[upper].get(name, math.nan), by_name[lower].get(name, math.nan))
            for name, v in values.items()
        }
        rows.append(ReportRow(result, values, ratios, kept))
    return rows


def _values(result: dict[str, Any]) -> dict[str, float]:
    return {name: described["value"] for name, described in result["benchmarks"].items()}


def _scores_table(rows: Sequence[ReportRow], columns: Sequence[str]) -> str:
    head = ["Row", "Tokens", "KV bytes/image", *columns, "Mean accuracy"]
    body = []
    for row in rows:
        scores = [_score_cell(row.result["benchmarks"].get(name)) for name in columns]
        cost = [str(row.result["tokens_per_image"]), f"{row.result['kv_bytes_per_image']:,}"]
        body.append([row.name, *cost, *scores, f"{row.result['mean_accuracy']:.3f}"])
    return "## Scores\n\n" + table(head, body)


def _score_cell(described: dict[str, Any] | None) -> str:
    if described is None:
        return MISSING
    scale = 100.0 if described["full"] == 1 else 1.0
    return f"{scale * described['value']:.1f}"


def _retention_table(rows: Sequence[ReportRow], columns: Sequence[str], shared: Sequence[str]) -> str:
    body = []
    for row in rows:
        cells = [_pair(row.retentions.get(name, math.nan), row.ratios.get(name, math.nan)) for name in columns]
        body.append([row.name, *cells, _pair(mean_over(row.retentions, shared), mean_over(row.ratios, shared))])
    return "## Retention in % (plain ratio in %)\n\n" + table(["Row", *columns, "Average"], body)


def _pair(kept: float, ratio: float) -> str:
    shown = [f"{100 * value:.1f}" if math.isfinite(value) else MISSING for value in (kept, ratio)]
    return MISSING if shown == [MISSING, MISSING] else f"{shown[0]} ({shown[1]})"


def _clips_table(results: Sequence[dict[str, Any]]) -> str:
    head = ["Row", "Frames", "Tokens", "KV bytes/clip", "In order", "Shuffled", "Questions"]
    body = [
        [
            result["row"],
            str(result["num_frames"]),
            str(result["tokens_per_clip"]),
            f"{result['kv_bytes_per_clip']:,}",
            f"{100 * result['in_order']:.1f}",
            f"{100 * result['shuffled']:.1f}",
            str(result["questions"]),
        ]
        for result in results
    ]
    return "## Clips, exact match in %\n\n" + table(head, body)


def _notes(
    rows: Sequence[ReportRow],
    columns: Sequence[str],
    shared: Sequence[str],
    upper: str,
    lower: str,
    allow_limited: bool,
) -> str:
    of = {row.name: row.result for row in rows}
    notes = [
        f"Retention is (row - {lower}) / ({upper} - {lower}), the plain ratio row / {upper}.",
        "GQA, VQAv2: exact match in %; MMBench: accuracy in %; POPE: F1 in %; MME: perception score, 200 a category.",
        "Mean accuracy is the mean over benchmarks of the share of questions answered right, 0 to 1.",
        f"Tokens are what the language model keeps of an image, KV bytes their keys and values"
        f" ({', '.join(sorted({row.result['kv_dtype'] for row in rows}))}).",
    ]
    if list(shared) != list(columns):
        notes.append(
            f"{MISSING} marks what is missing or undefined; averages are over {', '.join(shared) or 'nothing'} only."
        )
    if of[upper]["checkpoint_fingerprint"] != of[lower]["checkpoint_fingerprint"]:
        notes.append(f"{lower} was not measured on the weights of {upper}: it is not the paper's lower bound.")
    if allow_limited and any(row.result["limit"] for row in rows):
        notes.append("Some rows were evaluated on a part of the questions only.")
    unreadable = [
        f"{row.name} {name} {described['details']['unreadable']:.0f} of {described['questions']}"
        for row in rows
        for name, described in row.result["benchmarks"].items()
        if described["details"].get("unreadable")
    ]
    if unreadable:
        notes.append(f"Answers that are neither yes nor no, or name no option: {'; '.join(unreadable)}.")
    return "\n".join(f"- {note}" for note in notes)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns padded to be read as text: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    align: list[Callable[..., str]] = [str.ljust] + [str.rjust] * (len(head) - 1)

    def line(cells: Sequence[str]) -> str:
        padded = (pad(cell, width) for pad, cell, width in zip(align, cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, body)])


def _csv(rows: Sequence[ReportRow]) -> str:
    head = ("metric", "value", "full", "accuracy", "questions", "data_fingerprint")
    facts = (
        "row",
        "condition",
        "num_voco",
        "tokens_per_image",
        "kv_bytes_per_image",
        "limit",
        "checkpoint_fingerprint",
    )
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*facts, "benchmark", *head, "unreadable", "plain_ratio", "retention"])
    for row in rows:
        for name, described in row.result["benchmarks"].items():
            writer.writerow(
                [
                    *(row.result[fact] for fact in facts),
                    name,
                    *(described[key] for key in head),
                    described["details"].get("unreadable", ""),
                    row.ratios[name],
                    row.retentions[name],
                ]
            )
    return written.getvalue()
