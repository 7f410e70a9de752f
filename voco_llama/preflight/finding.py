"""What a check found, and how checks are kept apart: one that breaks says so, and the others go on."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco_llama.errors import VoCoError, one_line

GB = 1e9
SECONDS = 5
"""That another program or a server may take to answer."""

SHARED_MEMORY = Path("/dev/shm")

LEVELS = ("ok", "note", "warning", "error")
"""Only an error stands in the way of a training."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: its level of `LEVELS`, the thing looked at, what it is, and what to do if anything is."""

    level: str
    what: str
    detail: str
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """All findings of all checks, in order; whatever a check raises becomes its finding."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            for finding in check():
                findings.append(finding)  # one by one: those before an error count
        except VoCoError as error:
            findings.append(Finding("error", name, str(error)))
        except Exception as error:  # a broken driver or library raises anything; that is what is to be reported
            text = f"the check itself failed ({type(error).__name__}: {one_line(error)})"
            findings.append(Finding("error", name, text, "repair it first"))
    return findings


def judged(is_fine: bool, what: str, detail: str, level: str, advice: str) -> Finding:
    """`ok`, or of another level and with what to do."""
    return Finding("ok", what, detail) if is_fine else Finding(level, what, detail, advice)


def format_findings(findings: Sequence[Finding]) -> str:
    """A table: `level  what: detail; advice`."""
    width = max(map(len, LEVELS))
    return "".join(
        f"{each.level:<{width}}  {each.what}: {each.detail}{'; ' if each.advice else ''}{each.advice}\n"
        for each in findings
    )


def num_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
