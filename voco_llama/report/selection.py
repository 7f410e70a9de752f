"""Which rows stand in a table, in which order and under which names: small YAML files, those of `eval/tables` by name.

title: Methods at one token
rows:
- {row: upper, label: Upper bound}
- {row: voco_1, label: VoCo (1), paper: voco_1}
pairs: [[voco_1, average_pool_1]]
series: {voco: VoCo}
"""

import dataclasses
from dataclasses import dataclass, field

from voco_llama.composition import read_file
from voco_llama.config_files import EVAL_DIR, eval_file
from voco_llama.errors import require

TABLES_DIR = EVAL_DIR / "tables"


@dataclass(frozen=True)
class SelectedRow:
    """A row of a table.

    Attributes:
        row: Its name in the result files.
        label: What to print; the name by default.
        paper: `row` of its counterpart in `eval/paper_tables.yaml`; the name by default.
    """

    row: str
    label: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Selection:
    """Rows, and what to call them; without rows, all that are found.

    Attributes:
        title: Of the report.
        rows: In order.
        pairs: Rows whose retentions to compare seed by seed, two and two.
        series: What the plot's legend calls a series (see `plot.series_name`).
    """

    title: str = ""
    rows: list[SelectedRow] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    series: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str] | None:
        """Names of the rows in order; None: all rows."""
        return [row.row for row in self.rows] or None

    def label(self, row: str) -> str:
        return next((selected.label for selected in self.rows if selected.row == row and selected.label), row)

    def paper(self, row: str) -> str:
        return next((selected.paper for selected in self.rows if selected.row == row and selected.paper), row)


def read_selection(name: str) -> Selection:
    """Read a table's file.

    Args:
        name: Of a file in `eval/tables` or the user's own folder, or a path that ends with `.yaml`.

    Raises:
        SettingsError: There is no such file, or it does not fit the schema.
    """
    file = eval_file("table", name, TABLES_DIR)
    selection = read_file(file, Selection)
    require(selection != Selection(), f"{file}: selects nothing: name rows, pairs or series")
    names = [row.row for row in selection.rows]
    for what, found in (("row", names), ("label", [row.label or row.row for row in selection.rows])):
        for one in found:
            require(found.count(one) == 1, f"{file}: {what} {one!r} stands there twice: keep one")
    for pair in selection.pairs:
        require(len(pair) == 2, f"{file}: a pair is of two rows, not {pair!r}")
        for one in pair:
            require(not names or one in names, f"{file}: a pair names {one!r}, which is not among its rows")
    return dataclasses.replace(selection, title=selection.title or file.stem)
