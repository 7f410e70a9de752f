"""`data check`: read every record and every image or clip of a training's data, and report all that is wrong.

Memory is bounded: problems go to a temporary database as they are found, and of a record 18 bytes are kept. The
findings are a function of the data and the settings, not of the number of processes.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voco_llama.composition import to_plain
from voco_llama.data_tools.chunks import chunks_of, find_processor, in_order
from voco_llama.data_tools.cleaned import check_cleaned, write_cleaned
from voco_llama.data_tools.examine import DIGESTS, Examiner, Problem, find_repetitions
from voco_llama.data_tools.settings import (
    JSON_BEGINNING,
    DataCheckSettings,
    check_data_settings,
    check_output,
    writing,
)
from voco_llama.errors import ProblemKind, SettingsError, did_you_mean
from voco_llama.files import written_aside
from voco_llama.provenance import provenance
from voco_llama.training.build import open_mixture

EXAMPLES = 3
"""Problems of a kind that the summary shows."""

VERDICTS = np.dtype([("bad", bool), ("dropped", bool)])
"""Of a record: an error; an error, or a note that the settings drop."""


@dataclass
class Findings:
    """What was found.

    Attributes:
        files: Of the sources.
        verdicts: Of each source, `[records]` of `VERDICTS`.
        lengths: By which tokenizer rows were measured, or why they were not.
        counts: Problems by kind.
        examples: The first few messages by kind.
        cleaned: The files of the cleaned copy, if one was written.
    """

    files: list[Path]
    verdicts: list[np.ndarray]
    lengths: str
    counts: Counter[ProblemKind] = field(default_factory=Counter)
    examples: dict[ProblemKind, list[str]] = field(default_factory=dict)
    cleaned: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        """Of all sources."""
        return sum(map(len, self.verdicts))

    @property
    def num_bad(self) -> int:
        """Records that a training refuses."""
        return sum(int(verdicts["bad"].sum()) for verdicts in self.verdicts)

    def add(self, problems: Iterable[Problem], drop: Sequence[str], spool: sqlite3.Connection) -> None:
        """Count problems, and keep each in the database as the report has it."""
        for problem in problems:
            kind, verdicts = problem.kind, self.verdicts[problem.source]
            self.counts[kind] += 1
            examples = self.examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(problem.message)
            verdicts["bad"][problem.record] |= not kind.is_note
            verdicts["dropped"][problem.record] |= not kind.is_note or kind in drop
            described = {
                "kind": kind,
                "level": "note" if kind.is_note else "error",
                "file": str(self.files[problem.source]),
                "record": problem.record,
                "id": problem.id,
                "message": problem.message,
            }
            values = (problem.source, problem.record, json.dumps(described))
            spool.execute("INSERT INTO problems VALUES (?, ?, ?)", values)


def check_data(settings: DataCheckSettings, overrides: Sequence[str] | None = None) -> Findings:
    """Check all sources, and write the report and the cleaned copy that the settings ask for.

    Args:
        settings: Of the check, and of the training whose data it is.
        overrides: As `find_processor` takes them.

    Raises:
        SettingsError: The settings contradict each other, or an output cannot be written.
        DataError: A source cannot be opened, or no record of it is left to copy.
    """
    notes = [str(kind) for kind in ProblemKind if kind.is_note]
    for kind in settings.drop:
        if kind not in notes:
            raise SettingsError(f"drop names '{kind}'{did_you_mean(kind, notes)}; known: {', '.join(notes)}")
    check_data_settings(settings)
    if settings.report is not None:
        _check_report(Path(settings.report), settings)
    readers = open_mixture(settings).readers
    if settings.cleaned is not None:
        check_cleaned(Path(settings.cleaned), readers, settings.data)
    processor, lengths = find_processor(settings, overrides)
    verdicts, digests = ([np.zeros(len(reader), kept) for reader in readers] for kept in (VERDICTS, DIGESTS))
    findings = Findings([reader.file for reader in readers], verdicts, lengths)
    examiner = Examiner(readers, processor, settings.media, settings.data.num_frames)
    chunks = chunks_of([range(len(reader)) for reader in readers])
    with closing(sqlite3.connect("")) as spool:  # a file of its own that goes with the connection
        spool.execute("CREATE TABLE problems (source INTEGER, record INTEGER, described TEXT)")
        for examined in in_order(examiner, chunks, settings.workers, "data check"):
            digests[examined.source][np.asarray(examined.records)] = examined.digests
            findings.add(examined.problems, settings.drop, spool)
        findings.add(find_repetitions(readers, digests), settings.drop, spool)
        if settings.report is not None:
            found = spool.execute("SELECT described FROM problems ORDER BY source, record, rowid")
            write_report(settings, findings, (described for (described,) in found))
    if settings.cleaned is not None:
        kept = [~of_source["dropped"] for of_source in verdicts]
        findings.cleaned = write_cleaned(Path(settings.cleaned), readers, kept, settings.data)
    return findings


def _check_report(file: Path, settings: DataCheckSettings) -> None:
    """Find out now, not after hours, that the report cannot be written."""
    if any(file.resolve() == Path(source.file).resolve() for source in settings.data.sources):
        raise SettingsError(f"report: {file} is a data set's own file; give another name")
    check_output("report", file, JSON_BEGINNING)


def write_report(settings: DataCheckSettings, findings: Findings, problems: Iterable[str]) -> None:
    """Write the JSON report, one problem (JSON) after another, whole or not at all."""
    head = {
        "settings": to_plain(settings),
        **provenance(),
        "lengths": findings.lengths,
        "sources": [
            {"file": str(file), "records": len(verdicts), "bad_records": int(verdicts["bad"].sum())}
            for file, verdicts in zip(findings.files, findings.verdicts, strict=True)
        ],
        "counts": dict(sorted(findings.counts.items())),
    }
    file = Path(settings.report)
    with writing("report", file), written_aside(file) as aside, aside.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "problems": [')
        for place, problem in enumerate(problems):
            stream.write((",\n    " if place else "\n    ") + problem)
        stream.write("\n  ]\n}\n")


def check_summary(findings: Findings) -> str:
    """What the command prints: the kinds found, errors first, each with its number and the first few."""
    sources = len(findings.files)
    lines = [f"{findings.num_records} records of {sources} source{'' if sources == 1 else 's'}", *_kinds(findings)]
    lines.append(f"row lengths: {findings.lengths}")
    lines += [f"cleaned: {file}" for file in findings.cleaned]
    return "\n".join(lines) + "\n"


def _kinds(findings: Findings) -> Iterator[str]:
    for kind in sorted(findings.counts, key=list(ProblemKind).index):
        number, examples = findings.counts[kind], findings.examples[kind]
        yield f"{'note' if kind.is_note else 'error':<5}  {number:>8}  {kind:<18}  {kind.meaning}"
        yield from (f"         {message}" for message in examples)
        if number > len(examples):
            yield f"         and {number - len(examples)} more"
    if not findings.counts:
        yield "nothing found"


def error_line(findings: Findings) -> str:
    """One line on what a training would refuse."""
    kinds = ", ".join(f"{number} {kind}" for kind, number in findings.counts.items() if not kind.is_note)
    return (
        f"{findings.num_bad} of {findings.num_records} records cannot be trained on ({kinds}): mend them, or have"
        " cleaned=FOLDER write the others"
    )
