"""The paper's tables as data (`eval/paper_tables.yaml`), their retentions computed anew from the raw scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from voco_llama.config_files import EVAL_DIR
from voco_llama.errors import SettingsError, did_you_mean
from voco_llama.report.aggregate import PERCENT, mean_over, retention

PAPER_FILE = EVAL_DIR / "paper_tables.yaml"
UPPER, LOWER = "upper", "lower"


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper.

    Attributes:
        label: What to print.
        num_voco: Tokens that stand for an image when it is read; None: the upper bound.
        scores: Column to raw score, in the paper's units.
        retentions: Column to retention, computed from the scores; 1 is the upper bound.
        average: Mean of the retentions over all columns.
        printed: Column, or `average`, to retention in %, where the paper prints one.
    """

    label: str
    num_voco: int | None
    scores: Mapping[str, float]
    retentions: Mapping[str, float]
    average: float
    printed: Mapping[str, float]


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        name: Its key in the file: `table_1`.
        title: What it is about.
        columns: The paper's names of benchmarks.
        rows: The name of our row that is a counterpart, to the paper's row; bounds first.
        counterparts: Our name of a benchmark to the paper's column, for the columns of this table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, PaperRow]
    counterparts: Mapping[str, str]

    @property
    def number(self) -> str:
        """How the paper names it: `Table 1`."""
        return self.name.replace("_", " ").capitalize()


def read_paper_table(name: str) -> PaperTable:
    """Read one of the tables that state scores and have bounds (1, 2 and 4).

    Raises:
        SettingsError: There is no such table.
    """
    data = yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))
    known = [key for key, table in data.items() if "bounds" in table]
    if name not in known:
        raise SettingsError(f"no {name!r} in {PAPER_FILE}{did_you_mean(name, known)} (choices: {', '.join(known)})")
    table, bounds = data[name], data[data[name]["bounds"]]
    upper, lower = (dict(zip(bounds["columns"], bounds[bound], strict=True)) for bound in (UPPER, LOWER))
    columns = tuple(table["columns"])
    ends = [
        {"label": label, "row": row, "num_voco": count, "scores": [bound[column] for column in columns]}
        for label, row, count, bound in (("upper bound", UPPER, None, upper), ("lower bound", LOWER, 1, lower))
    ]
    rows = {entry["row"]: _row(entry, columns, upper, lower) for entry in (*ends, *table["rows"])}
    ours = {our: column for our, column in data["benchmarks"].items() if column in columns}
    return PaperTable(name, table["title"], columns, rows, ours)


def _row(
    entry: Mapping[str, Any], columns: tuple[str, ...], upper: Mapping[str, float], lower: Mapping[str, float]
) -> PaperRow:
    scores = dict(zip(columns, entry["scores"], strict=True))
    kept = {column: retention(score, upper[column], lower[column]) for column, score in scores.items()}
    printed = dict(zip(columns, entry["retention"], strict=True)) if "retention" in entry else {}
    if "average" in entry:
        printed["average"] = entry["average"]
    average = mean_over(kept.values())
    return PaperRow(entry["label"], entry["num_voco"], scores, kept, average, printed)


def disagreements(table: PaperTable, tolerance: float) -> list[tuple[str, str, float, float]]:
    """Figures further than `tolerance` points of retention from what the paper's own scores give.

    Returns:
        Label, column (or `average`), the printed and the computed retention in %.
    """
    found = []
    for row in table.rows.values():
        for column, figure in row.printed.items():
            computed = PERCENT * {**row.retentions, "average": row.average}[column]
            if abs(figure - computed) > tolerance:
                found.append((row.label, column, figure, computed))
    return found
