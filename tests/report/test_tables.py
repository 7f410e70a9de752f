"""Cells, and the forms in which a table is written."""

import math

import pytest

from voco_llama.report.aggregate import Estimate
from voco_llama.report.report import to_csv
from voco_llama.report.sections import cell
from voco_llama.text import TextTable, latex, latex_text, markdown

TABLE = TextTable("A title", ["Row", "N"], [["a", "10"], ["a_|b", "-4.0 ± 1.0"]])


def test_markdown_is_aligned():
    assert markdown(TABLE.head, TABLE.body).splitlines() == [
        r"| Row   |          N |",
        r"|:------|-----------:|",
        r"| a     |         10 |",
        r"| a_\|b | -4.0 ± 1.0 |",
    ]


def test_latex_is_booktabs():
    assert latex(*TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A title}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"Row & N \\",
        r"\midrule",
        r"a & 10 \\",
        r"a\_|b & $-$4.0 $\pm$ 1.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("voco_1 & 5 % #2 $x {y}", r"voco\_1 \& 5 \% \#2 \$x \{y\}"),
        (r"a\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("–", "--"),
        ("3.0 ± 0.2 (-1.5), 1-2, Q-Former", r"3.0 $\pm$ 0.2 ($-$1.5), 1-2, Q-Former"),
    ],
)
def test_latex_text(text, expected):
    assert latex_text(text) == expected


def test_cells():
    assert cell(Estimate(0.825, 0.0163, 3)) == "82.5 ± 1.6"
    assert cell(Estimate(0.825, math.nan, 1)) == "82.5"
    assert cell(Estimate(0.825, math.nan, 1), expected=3) == "82.5, n=1"
    assert cell(Estimate(0.825, 0.01, 3), expected=3) == "82.5 ± 1.0"
    assert cell(Estimate(math.nan, math.nan, 0), expected=3) == "–"
    assert cell(Estimate(620.25, 3.0, 2), scale=1, digits=2) == "620.25 ± 3.00"


def test_csv_keeps_every_digit():
    assert to_csv(["a", "b"], [[1 / 3, "x,y"], [math.nan, None]]) == f'a,b\n{1 / 3!r},"x,y"\nnan,\n'
