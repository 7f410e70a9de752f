"""Which rows stand in a table, in which order and under which names: small YAML files, those of `eval/tables` by name.

title: Methods at one token
rows:
- {row: upper, label: Upper bound}
- {row: voco_1, label: VoCo (1), paper: voco_1}
pairs: [[voco_1, average_pool_1]]
series: {voco: VoCo}
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from voco_llama.composition import did_you_mean
from voco_llama.errors import SettingsError
from voco_llama.report.paper import EVAL_DIR

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
        pairs: Rows whose retentions to compare seed by seed.
        series: What the plot's legend calls a series (see `plot.series_name`).
    """

    title: str = "Report"
    rows: tuple[SelectedRow, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    series: Mapping[str, str] = field(default_factory=dict)

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
        name: Of a file in `eval/tables` without its ending, or a path that ends with `.yaml`.

    Raises:
        SettingsError: There is no such file, or it does not fit the schema.
    """
    file = Path(name) if name.endswith(".yaml") else TABLES_DIR / f"{name}.yaml"
    if not file.is_file():
        known = sorted(known.stem for known in TABLES_DIR.glob("*.yaml"))
        hint = f"{did_you_mean(name, known)} (choices: {', '.join(known)}, or the path of a .yaml)"
        raise SettingsError(f"there is no table {name!r}{hint}")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: is no YAML ({' '.join(str(error).split())})") from error
    data = _known(file, data, Selection, "the table")
    _check_types(file, data)
    rows = tuple(SelectedRow(**row) for row in data.get("rows", ()))
    pairs = tuple(tuple(pair) for pair in data.get("pairs", ()))
    selection = Selection(data.get("title", file.stem), rows, pairs, data.get("series", {}))
    _check_names(file, selection)
    return selection


def _known(file: Path, given: Any, schema: type, what: str) -> dict[str, Any]:
    known = [entry.name for entry in fields(schema)]
    if not isinstance(given, dict):
        raise SettingsError(f"{file}: {what} must have keys ({', '.join(known)}), not be {given!r}")
    for key in given:
        if key not in known:
            raise SettingsError(
                f"{file}: {what} has no {key!r}{did_you_mean(str(key), known)} (keys: {', '.join(known)})"
            )
    return given


def _check_types(file: Path, data: Mapping[str, Any]) -> None:
    for key in ("rows", "pairs"):
        if not isinstance(data.get(key, []), list):
            raise SettingsError(f"{file}: {key} must be a list, not {data[key]!r}")
    if not isinstance(data.get("series", {}), dict):
        raise SettingsError(f"{file}: series must map a name to a label, not be {data['series']!r}")
    for row in data.get("rows", []):
        if "row" not in _known(file, row, SelectedRow, "a row"):
            raise SettingsError(f"{file}: a row has no name: give it a `row`")
    for pair in data.get("pairs", []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise SettingsError(f"{file}: a pair is of two rows, not {pair!r}")


def _check_names(file: Path, selection: Selection) -> None:
    names = [row.row for row in selection.rows]
    for what, found in (("row", names), ("label", [row.label or row.row for row in selection.rows])):
        repeated = [name for name, count in Counter(found).items() if count > 1]
        if repeated:
            raise SettingsError(f"{file}: {what} {repeated[0]!r} stands there twice: keep one")
    for pair in selection.pairs:
        stranger = next((name for name in pair if names and name not in names), None)
        if stranger is not None:
            raise SettingsError(f"{file}: a pair names {stranger!r}, which is not among its rows")
