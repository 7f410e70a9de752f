"""How durations and tables read, in logs, on a terminal, in Markdown and in LaTeX."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tabulate import tabulate

_LATEX_ESCAPES = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


class TextTable(NamedTuple):
    """A table whose cells are plain text: a title, names of the columns, and rows as long as these."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h10m`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def printable(text: str) -> str:
    """A text from anybody's file on one line of a terminal, which obeys no character in it."""
    return "".join(character if character.isprintable() else " " for character in text)


def aligned(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    return _table(head, body, "plain")


def markdown(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """The same as a table of Markdown, padded so that it reads well in a terminal too; `|` in a cell is escaped."""
    escaped = ([str(cell).replace("|", r"\|") for cell in row] for row in (head, *body))
    return _table(next(escaped), escaped, "pipe")


def _table(head: Sequence[str], body: Iterable[Sequence[object]], form: str) -> str:
    alignment = ["left", *["right"] * (len(head) - 1)]
    rows = [[str(cell) for cell in row] for row in body]
    return tabulate(rows, head, form, disable_numparse=True, preserve_whitespace=True, colalign=alignment)


def latex(title: str, head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """A `table` environment with its title as caption, for documents that load the package booktabs."""
    first, *rows = (" & ".join(latex_text(str(cell)) for cell in row) + r" \\" for row in (head, *body))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            first,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def latex_text(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, a minus sign where a hyphen stands before a number."""
    escaped = "".join(_LATEX_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
