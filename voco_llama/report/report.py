"""`report`: result files to tables (Markdown, LaTeX, CSV) and plots; no number that does not come from a file."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from voco_llama.errors import DataError
from voco_llama.evaluation.results import (
    BENCHMARKS_KIND,
    CLIPS_KIND,
    IN_ORDER,
    SHUFFLED,
    TEXT_KIND,
    TEXT_RATES,
    find_results,
    read_result,
)
from voco_llama.files import check_writable, write_atomically
from voco_llama.report import sections
from voco_llama.report.aggregate import Comparison, Estimate, Measure, Result, Row, check_results, compare, rows_of
from voco_llama.report.paper import PaperTable, disagreements, read_paper_table
from voco_llama.report.plot import paper_series, plot_benchmarks, plot_retention, retention_series
from voco_llama.report.selection import Selection, read_selection
from voco_llama.text import TextTable, latex, markdown

REPORT, SUMMARY, RETENTION_PLOT, BENCHMARKS_PLOT = "report", "summary", "retention", "benchmarks"
PRINTED_TOLERANCE = 0.1
"""Points of retention that a figure of the paper may differ from what its scores give."""
CLIP_ORDERS = {IN_ORDER: "clips, in order", SHUFFLED: "clips, shuffled"}
MEASURES: tuple[Measure, ...] = ("value", "plain_ratio", "retention")
"""Of a row, in `summary.csv`."""


@dataclass(frozen=True)
class ReportSettings:
    """What to report.

    Attributes:
        results: Folder of result files; those in folders below it are read too (a folder a seed, for example).
        output: Folder for the tables and the plots.
        table: Which rows, in which order: a name in `eval/tables`, or the path of such a file. None: all rows.
        reference: A table of the paper (`table_1`, `table_2`, `table_4`) to put beside ours.
        paper: A table of the paper to print by itself; no result is read then.
        seeds: Those to take; None: all.
        upper: Row of the upper bound.
        lower: Row of the lower bound: the upper bound's weights under the VoCo mask.
        allow_limited: Take rows that were evaluated on a part of the questions.
    """

    results: Path
    output: Path
    table: str | None = None
    reference: str | None = None
    paper: str | None = None
    seeds: list[int] | None = None
    upper: str = "upper"
    lower: str = "lower"
    allow_limited: bool = False


def report(settings: ReportSettings) -> str:
    """Write `report.md`, `report.tex`, `report.csv` (every seed), `summary.csv` (over seeds) and the plots.

    Returns:
        The text of `report.md`, whose tables are aligned to be read in a terminal.

    Raises:
        DataError: There are no results, or they cannot stand in one table (see `aggregate.check_results` and
            `aggregate.compare`).
        SettingsError: A table or a reference is unknown, or `output` cannot be written.
    """
    check_writable("output", settings.output)
    if settings.paper is not None:
        return _paper_report(read_paper_table(settings.paper), settings.output)
    selection = Selection("Report") if settings.table is None else read_selection(settings.table)
    reference = None if settings.reference is None else read_paper_table(settings.reference)
    results = _read(settings, selection)
    benchmarks = [result for result in results if result["kind"] == BENCHMARKS_KIND]
    clips, texts = (
        sorted(rows_of([r for r in results if r["kind"] == kind]).values(), key=lambda row: row.name)
        for kind in (CLIPS_KIND, TEXT_KIND)
    )
    if not benchmarks:
        return _report_without_bounds(clips, texts, selection, settings.output)
    comparison = compare(benchmarks, settings.upper, settings.lower, selection.names)
    tables = [
        sections.scores_table(comparison, selection),
        sections.retention_table(comparison, selection),
        sections.differences_table(comparison, selection),
        *([] if reference is None else sections.reference_tables(comparison, selection, reference)),
        sections.clips_table(clips, selection) if clips else None,
        sections.texts_table(texts, selection) if texts else None,
    ]
    notes = [*sections.notes(comparison, selection, reference), *sections.text_notes(texts)]
    pictures = _plot(comparison, selection, reference, settings.output)
    write_atomically(settings.output / f"{REPORT}.csv", _seeds_csv(comparison))
    write_atomically(settings.output / f"{SUMMARY}.csv", _summary_csv(comparison, clips, texts))
    kept = [table for table in tables if table is not None]
    return _write(settings.output, REPORT, selection.title, kept, notes, pictures)


def _report_without_bounds(clips: Sequence[Row], texts: Sequence[Row], selection: Selection, output: Path) -> str:
    """Of results on clips and texts alone, which are measured against no bounds."""
    limited = any(result["limit"] for row in clips for result in row.results.values())
    notes = ["Some rows were evaluated on a part of the questions only."] if limited else []
    notes += sections.text_notes(texts)
    tables = [sections.clips_table(clips, selection)] if clips else []
    tables += [sections.texts_table(texts, selection)] if texts else []
    write_atomically(output / f"{SUMMARY}.csv", _summary_csv(None, clips, texts))
    return _write(output, REPORT, selection.title, tables, notes, [])


def _paper_report(table: PaperTable, output: Path) -> str:
    notes = [
        "Scores are the paper's, every retention and average is computed from them; `As printed` is its own average.",
        *(
            f"{label}, {column}: the paper prints {printed:.1f}, its scores give {computed:.2f}."
            for label, column, printed, computed in disagreements(table, PRINTED_TOLERANCE)
        ),
    ]
    stem = f"paper_{table.name}"
    rows = [
        (row.label, row.num_voco, column, row.scores[column], row.retentions[column], row.printed.get(column, ""))
        for row in table.rows.values()
        for column in table.columns
    ]
    head = ("row", "num_voco", "benchmark", "score", "retention", "printed_retention_percent")
    write_atomically(output / f"{stem}.csv", to_csv(head, rows))
    return _write(output, stem, f"Paper, {table.number}", [sections.paper_table(table)], notes, [])


def _read(settings: ReportSettings, selection: Selection) -> list[Result]:
    """The results that the table is made of, checked."""
    files = find_results(settings.results)
    if not files:
        if settings.results.is_file():
            raise DataError(f"results: {settings.results} is a file: name the folder of the results")
        why = "" if settings.results.exists() else f" (no such folder from {Path.cwd()})"
        raise DataError(f"{settings.results}: holds no results{why}: run voco-llama evaluate first")
    results = {file: read_result(file) for file in files}
    if settings.seeds is not None:
        seeds = sorted({result["seed"] for result in results.values()})
        results = {file: result for file, result in results.items() if result["seed"] in settings.seeds}
        if not results:
            raise DataError(f"{settings.results}: no result has a seed of {settings.seeds}: there are {seeds}")
    if selection.names is not None:
        found = dict.fromkeys(result["row"] for result in results.values())
        if not set(found) & set(selection.names):
            raise DataError(f"no row of table {settings.table} has a result: {settings.results} has {', '.join(found)}")
        taken = {*selection.names, settings.upper, settings.lower}
        results = {f: result for f, result in results.items() if result["row"] in taken or result["kind"] == TEXT_KIND}
    check_results(results, settings.allow_limited)
    return list(results.values())


def _plot(comparison: Comparison, selection: Selection, reference: PaperTable | None, output: Path) -> list[str]:
    """Draw what there is to draw, and return it as Markdown."""
    pictures = []
    for name, over in sections.averages_over(comparison.shared).items():
        series = retention_series(comparison, selection.series, over)
        if series and reference is not None:
            theirs = list(sections.averages_over(reference.columns).values())
            series.append(paper_series(reference, theirs[0 if over is comparison.shared else -1]))
        if series:
            stem = RETENTION_PLOT + name.removeprefix(sections.AVERAGE).replace(" ", "_")
            plot_retention(series, output / stem)
            pictures.append(f"![{name} retention against tokens an image]({stem}.png)")
    bounds = {row.name for row in comparison.bounds}
    bars = [(selection.label(row.name), row) for row in comparison.rows if row.name not in bounds]
    if bars and comparison.shared:
        plot_benchmarks(bars, comparison.shared, output / BENCHMARKS_PLOT)
        pictures.append(f"![Retention by benchmark]({BENCHMARKS_PLOT}.png)")
    return pictures


def _write(
    output: Path, stem: str, title: str, tables: Sequence[TextTable], notes: Sequence[str], pictures: Sequence[str]
) -> str:
    listed = ["\n".join(f"- {note}" for note in notes)] if notes else []
    shown = (f"## {table.title}\n\n{markdown(table.head, table.body)}" for table in tables)
    text = "\n\n".join([f"# {title}", *shown, *listed, *pictures]) + "\n"
    write_atomically(output / f"{stem}.md", text)
    comments = "\n".join(f"% {note}" for note in notes)
    write_atomically(output / f"{stem}.tex", "\n\n".join([*(latex(*table) for table in tables), comments]) + "\n")
    return text


def _seeds_csv(comparison: Comparison) -> str:
    facts = (
        *("condition", "num_voco", "quality", "tokens_per_image", "kv_bytes_per_image", "limit"),
        "checkpoint_fingerprint",
    )
    described = ("metric", "value", "full", "accuracy", "questions", "data_fingerprint")
    head = ("row", "seed", *facts, "benchmark", *described, "unreadable", "plain_ratio", "retention")
    rows = (
        [
            *(row.name, seed),
            *(result[fact] for fact in facts),
            benchmark,
            *(score[key] for key in described),
            *(score["details"].get("unreadable", ""), score["plain_ratio"], score["retention"]),
        ]
        for row in comparison.rows
        for seed, result in row.results.items()
        for benchmark, score in result["benchmarks"].items()
    )
    return to_csv(head, rows)


def _summary_csv(comparison: Comparison | None, clips: Sequence[Row], texts: Sequence[Row]) -> str:
    parts = [measure + part for measure in MEASURES for part in ("", "_standard_error", "_seeds")]
    nothing, rows = Estimate(math.nan, math.nan, 0), []
    for row in comparison.rows if comparison is not None else ():
        for benchmark in comparison.columns:
            rows.append([row.name, benchmark, *chain(*(row.of(measure, benchmark) for measure in MEASURES))])
        for name, over in sections.averages_over(comparison.shared).items():
            averages = (row.average(measure, over) for measure in ("plain_ratio", "retention"))
            rows.append([row.name, name.replace(sections.AVERAGE, "average"), *chain(nothing, *averages)])
    for row in clips:
        for order, label in CLIP_ORDERS.items():
            rows.append([row.name, label, *chain(row.over_seeds(order), nothing, nothing)])
    for row in texts:
        rows += [[row.name, f"text, {rate}", *chain(row.over_seeds(rate), nothing, nothing)] for rate in TEXT_RATES]
    return to_csv(("row", "benchmark", *parts), rows)


def to_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Values in full precision; an undefined number is `nan`."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return written.getvalue()
