"""Table files: the shipped ones are sound, and a mistake in one's own is one line."""

import pytest

from voco_llama.errors import SettingsError
from voco_llama.report.selection import TABLES_DIR, Selection, read_selection

SHIPPED = sorted(file.stem for file in TABLES_DIR.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables(name):
    selection = read_selection(name)
    assert selection.rows
    assert selection.pairs
    assert all(row.label for row in selection.rows)
    assert selection.names[0] == "upper"
    assert "lower" in selection.names
    assert selection == read_selection(str(TABLES_DIR / f"{name}.yaml"))


def test_ablations_hold_what_the_sweep_makes():
    names = set(read_selection("ablations").names)
    assert {"voco_1_kl", "voco_4_bidirectional", "voco_4_distinct", "no_mask_16_removed", "q_former_4"} <= names


def test_names_by_default(tmp_path):
    assert Selection().names is None
    file = tmp_path / "mine.yaml"
    file.write_text("rows: [{row: a}, {row: b, label: B, paper: c}]\nseries: {voco: VoCo}")
    selection = read_selection(str(file))
    assert selection.title == "mine"
    assert (selection.label("a"), selection.label("b"), selection.label("z")) == ("a", "B", "z")
    assert (selection.paper("a"), selection.paper("b")) == ("a", "c")
    assert selection.series == {"voco": "VoCo"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rows: [{row: a", "while parsing a flow mapping"),
        ("- a", "Cannot merge DictConfig with ListConfig"),
        ("", "selects nothing: name rows, pairs or series"),
        ("row: []", "unknown setting 'row'; did you mean 'rows'"),
        ("rows: [a]", "str is not a subclass of SelectedRow"),
        ("rows: [{label: a}]", r"rows\[0\].row has no value"),
        ("rows: [{row: a, lable: b}]", "unknown setting 'lable'"),
        ("rows: [{row: a}, {row: a}]", "row 'a' stands there twice"),
        ("rows: [{row: a}, {row: b, label: a}]", "label 'a' stands there twice"),
        ("rows: [{row: a}]\npairs: [[a, b]]", "a pair names 'b', which is not among its rows"),
        ("pairs: [[a, b, c]]", r"a pair is of two rows, not \['a', 'b', 'c'\]"),
        ("pairs: [ab]", "str is not a ListConfig, list or tuple"),
        ("rows: a", "rows: Invalid value assigned|is not a ListConfig, list or tuple. full_key: rows"),
        ("series: [voco]", "Cannot merge DictConfig with ListConfig"),
    ],
)
def test_mistakes(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=message) as caught:
        read_selection(str(file))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_unknown_table():
    with pytest.raises(SettingsError, match="there is no table 'ablation'; did you mean 'ablations'"):
        read_selection("ablation")
    with pytest.raises(SettingsError, match="there is no table 'nothing.yaml'"):
        read_selection("nothing.yaml")
