"""Tables of text, written as Markdown (aligned, so it also reads well in a terminal), LaTeX (booktabs) and CSV."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from voco_llama.report.aggregate import Estimate

MISSING = "–"
PLUS_MINUS = "±"
PERCENT = 100.0
_LATEX_ESCAPES = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    PLUS_MINUS: r"$\pm$",
    MISSING: "--",
}


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are plain text.

    Attributes:
        title: What stands above it.
        head: Names of the columns.
        body: Rows, as long as the head.
    """

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def cell(value: Estimate, scale: float = PERCENT, digits: int = 1, expected: int | None = None) -> str:
    """`mean ± error`, the error only where there is one; marked with its number of seeds if fewer than `expected`."""
    if not math.isfinite(value.mean):
        return MISSING
    text = f"{scale * value.mean:.{digits}f}"
    if math.isfinite(value.error):
        text += f" {PLUS_MINUS} {scale * value.error:.{digits}f}"
    return text + ("" if expected is None else fewer(value, expected))


def fewer(value: Estimate, expected: int) -> str:
    """`, n=2` where fewer seeds have the value than expected, else nothing."""
    return f", n={value.count}" if value.count < expected else ""


def to_markdown(table: TextTable) -> str:
    """A heading, and the table padded to be read as text: the first column to the left, the others to the right."""
    lines = [[text.replace("|", r"\|") for text in line] for line in (table.head, *table.body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    align: list[Callable[..., str]] = [str.ljust] + [str.rjust] * (len(widths) - 1)
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    head, *body = (
        f"| {' | '.join(pad(text, width) for pad, text, width in zip(align, line, widths, strict=True))} |"
        for line in lines
    )
    return "\n".join([f"## {table.title}", "", head, f"|{rule}|", *body])


def to_latex(table: TextTable) -> str:
    """A `table` environment with its title as caption, for documents that load the package booktabs."""
    head, *body = (" & ".join(map(latex_text, line)) + r" \\" for line in (table.head, *table.body))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def latex_text(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, a minus sign where a hyphen stands before a number."""
    escaped = "".join(_LATEX_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def to_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Values in full precision; an undefined number is `nan`."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return written.getvalue()
