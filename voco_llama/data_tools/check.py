"""`data check`: read every record and every image or clip of a training's data, and report all that is wrong.

Memory is bounded: problems go to a temporary file as they are found, and of a record 18 bytes are kept. The findings
are a function of the data and the settings, not of the number of processes.
"""

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from voco_llama.composition import did_you_mean, to_plain
from voco_llama.data.readers import Reader
from voco_llama.data_tools.chunks import chunks_of, find_processor, in_order
from voco_llama.data_tools.cleaned import check_cleaned, write_cleaned
from voco_llama.data_tools.examine import Examined, Examiner, Problem, find_repetitions
from voco_llama.data_tools.settings import DataCheckSettings
from voco_llama.errors import ProblemKind, SettingsError, one_line
from voco_llama.files import written_aside
from voco_llama.provenance import provenance
from voco_llama.training.build import open_mixture

EXAMPLES = 3
"""Problems of a kind that the summary shows."""


@dataclass
class Findings:
    """What was found.

    Attributes:
        files: Of the sources.
        bad: Of each source, `[records]` bool: an error.
        dropped: Of each source, `[records]` bool: an error, or a note that the settings drop.
        counts: Problems by kind.
        examples: The first few messages by kind.
        lengths: By which tokenizer rows were measured, or why they were not.
        contents: Of each source, `[records]` uint64 digests.
        ids: Likewise.
        cleaned: The files of the cleaned copy, if one was written.
    """

    files: list[Path]
    bad: list[np.ndarray]
    dropped: list[np.ndarray]
    counts: Counter[ProblemKind] = field(default_factory=Counter)
    examples: dict[ProblemKind, list[str]] = field(default_factory=dict)
    lengths: str = ""
    contents: list[np.ndarray] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, readers: Sequence[Reader], lengths: str) -> "Findings":
        """Of nothing so far."""

        def columns(dtype: type) -> list[np.ndarray]:
            return [np.zeros(len(reader), dtype=dtype) for reader in readers]

        return cls(
            [reader.file for reader in readers],
            columns(bool),
            columns(bool),
            lengths=lengths,
            contents=columns(np.uint64),
            ids=columns(np.uint64),
        )

    @property
    def num_records(self) -> int:
        """Of all sources."""
        return sum(len(bad) for bad in self.bad)

    @property
    def num_bad(self) -> int:
        """Records that a training refuses."""
        return sum(int(bad.sum()) for bad in self.bad)

    def add(self, problems: Iterable[Problem], drop: Sequence[str], spool: TextIO) -> None:
        """Count problems, and write each to a line of `spool`."""
        for problem in problems:
            self.counts[problem.kind] += 1
            examples = self.examples.setdefault(problem.kind, [])
            if len(examples) < EXAMPLES:
                examples.append(problem.message)
            if not problem.kind.is_note:
                self.bad[problem.source][problem.record] = True
            if not problem.kind.is_note or problem.kind in drop:
                self.dropped[problem.source][problem.record] = True
            spool.write(json.dumps(asdict(problem)) + "\n")

    def keep_digests(self, examined: Examined) -> None:
        """Remember what a chunk's records are, to find them again."""
        for kept, new in ((self.contents, examined.contents), (self.ids, examined.ids)):
            kept[examined.source][np.asarray(examined.records)] = new


def check_data(settings: DataCheckSettings) -> Findings:
    """Check all sources, and write the report and the cleaned copy that the settings ask for.

    Raises:
        SettingsError: The settings contradict each other, or an output cannot be written.
        DataError: A source cannot be opened, or no record of it is left to copy.
    """
    notes = [str(kind) for kind in ProblemKind if kind.is_note]
    for kind in settings.drop:
        if kind not in notes:
            raise SettingsError(f"drop names '{kind}'{did_you_mean(kind, notes)}; known: {', '.join(notes)}")
    _check_report(settings)
    readers = open_mixture(settings).readers
    if settings.cleaned is not None:
        check_cleaned(Path(settings.cleaned), readers, settings.data)
    processor, lengths = find_processor(settings)
    findings = Findings.of(readers, lengths)
    examiner = Examiner(readers, processor, settings.media, settings.data.num_frames)
    chunks = chunks_of([range(len(reader)) for reader in readers])
    with ExitStack() as opened:
        spools = [opened.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(2)]
        for examined in in_order(examiner, chunks, settings.workers, "data check"):
            findings.keep_digests(examined)
            findings.add(examined.problems, settings.drop, spools[0])
        findings.add(find_repetitions(readers, findings.contents, findings.ids), settings.drop, spools[1])
        if settings.report is not None:
            write_report(settings, findings, _in_order_of_records(spools))
    if settings.cleaned is not None:
        kept = [~dropped for dropped in findings.dropped]
        findings.cleaned = write_cleaned(Path(settings.cleaned), readers, kept, settings.data)
    return findings


def _in_order_of_records(spools: Sequence[TextIO]) -> Iterator[Problem]:
    """The problems of several files, each of them in order."""
    for spool in spools:
        spool.seek(0)
    parts = [(_read_problem(line) for line in spool) for spool in spools]
    return heapq.merge(*parts, key=lambda problem: problem.place)


def _read_problem(line: str) -> Problem:
    values = json.loads(line)
    return Problem(**values | {"kind": ProblemKind(values["kind"])})


def _check_report(settings: DataCheckSettings) -> None:
    """Find out now, not after hours, that the report cannot be written."""
    if settings.report is None:
        return
    file = Path(settings.report)
    for source in settings.data.sources:
        if file.resolve() == Path(source.file).resolve():
            raise SettingsError(f"report: {file} is a data set's own file; give another name")
    if file.is_dir():
        raise SettingsError(f"report: {file} is a folder; give the name of a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise SettingsError(
            f"report: {file.parent} cannot be written ({one_line(error)}); give a file elsewhere"
        ) from error


def write_report(settings: DataCheckSettings, findings: Findings, problems: Iterator[Problem]) -> None:
    """Write the JSON report, one problem after another, whole or not at all."""
    head = {
        "settings": to_plain(settings),
        **provenance(),
        "lengths": findings.lengths,
        "sources": [
            {"file": str(file), "records": len(bad), "bad_records": int(bad.sum())}
            for file, bad in zip(findings.files, findings.bad, strict=True)
        ],
        "counts": dict(sorted(findings.counts.items())),
    }
    file = Path(settings.report)
    try:
        with written_aside(file) as aside, aside.open("w", encoding="utf-8") as stream:
            _write_json(stream, head, (_described(problem, findings.files) for problem in problems))
    except OSError as error:
        raise SettingsError(f"report: {file} cannot be written ({one_line(error)}); give a file elsewhere") from error


def _write_json(stream: TextIO, head: dict[str, Any], problems: Iterator[dict[str, Any]]) -> None:
    stream.write(json.dumps(head, indent=2).removesuffix("\n}") + ',\n  "problems": [')
    for place, problem in enumerate(problems):
        stream.write((",\n    " if place else "\n    ") + json.dumps(problem))
    stream.write("\n  ]\n}\n")


def _described(problem: Problem, files: Sequence[Path]) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "level": "note" if problem.kind.is_note else "error",
        "file": str(files[problem.source]),
        "record": problem.record,
        "id": problem.id,
        "message": problem.message,
    }


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
