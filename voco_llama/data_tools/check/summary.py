"""What `data check` prints."""

from collections.abc import Iterator

from voco_llama.data_tools.check.check import Findings
from voco_llama.data_tools.check.kinds import ERRORS, NOTES


def check_summary(findings: Findings) -> str:
    """The kinds found, errors first, each with its number and the first few."""
    sources = len(findings.files)
    lines = [f"{findings.num_records} records of {sources} source{'' if sources == 1 else 's'}", *_kinds(findings)]
    lines.append(f"row lengths: {findings.lengths}")
    lines += [f"cleaned: {file}" for file in findings.cleaned]
    return "\n".join(lines) + "\n"


def _kinds(findings: Findings) -> Iterator[str]:
    others = sorted(findings.counts.keys() - ERRORS.keys() - NOTES.keys())
    known = {**ERRORS, **dict.fromkeys(others, "")}
    for level, kinds in (("error", known), ("note", NOTES)):
        for kind, meaning in kinds.items():
            number = findings.counts[kind]
            if not number:
                continue
            yield f"{level:<5}  {number:>8}  {kind:<18}  {meaning}".rstrip()
            examples = findings.examples[kind]
            yield from (f"         {message}" for message in examples)
            if number > len(examples):
                yield f"         and {number - len(examples)} more"
    if not findings.counts:
        yield "nothing found"


def error_line(findings: Findings) -> str:
    """One line on what a training would refuse."""
    kinds = ", ".join(f"{findings.counts[kind]} {kind}" for kind in findings.counts if kind not in NOTES)
    return (
        f"{findings.num_bad} of {findings.num_records} records cannot be trained on ({kinds}): mend them, or have"
        " cleaned=FOLDER write the others"
    )
