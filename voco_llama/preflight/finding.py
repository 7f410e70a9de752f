"""What a check found, and how checks are kept apart: one that breaks says so, and the others go on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """One line of the report.

    Attributes:
        level: One of `LEVELS`.
        what: The thing looked at.
        detail: What it is.
        advice: What to do; empty where nothing is to be done.
    """

    level: str
    what: str
    detail: str
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """All findings of all checks, in order; whatever a check raises becomes its finding."""
    return [finding for name, check in checks for finding in _isolated(name, check)]


def _isolated(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except VoCoError as error:
        yield Finding("error", name, str(error))
    except Exception as error:  # a broken driver or library raises anything; that is what is to be reported
        yield Finding(
            "error", name, f"the check itself failed ({type(error).__name__}: {one_line(error)})", "repair it first"
        )


def format_findings(findings: Sequence[Finding]) -> str:
    """A table: `level  what: detail; advice`."""
    width = max(map(len, LEVELS))
    lines = [
        f"{finding.level:<{width}}  {finding.what}: {finding.detail}"
        + (f"; {finding.advice}" if finding.advice else "")
        for finding in findings
    ]
    return "".join(f"{line}\n" for line in lines)


def num_cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
