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
        ("rows: [{row: a", "is no YAML"),
        ("- a", r"the table must have keys \(title, rows, pairs, series\), not be \['a'\]"),
        ("", "the table must have keys"),
        ("row: []", "the table has no 'row'; did you mean 'rows'"),
        ("rows: [a]", "a row must have keys"),
        ("rows: [{label: a}]", "a row has no name: give it a `row`"),
        ("rows: [{row: a, lable: b}]", "a row has no 'lable'; did you mean 'label'"),
        ("rows: [{row: a}, {row: a}]", "row 'a' stands there twice"),
        ("rows: [{row: a}, {row: b, label: a}]", "label 'a' stands there twice"),
        ("rows: [{row: a}]\npairs: [[a, b]]", "a pair names 'b', which is not among its rows"),
        ("pairs: [[a, b, c]]", r"a pair is of two rows, not \['a', 'b', 'c'\]"),
        ("pairs: [ab]", "a pair is of two rows, not 'ab'"),
        ("rows: a", "rows must be a list, not 'a'"),
        ("series: [voco]", r"series must map a name to a label, not be \['voco'\]"),
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
