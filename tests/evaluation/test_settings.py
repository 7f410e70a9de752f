"""Suites are read whole or refused; the shipped ones ask known tasks."""

import pytest

from voco_llama.errors import SettingsError
from voco_llama.evaluation.settings import SUITES_DIR, Suite, SuiteRow, columns_of, read_suite
from voco_llama.report.paper import read_paper_table


def test_shipped_suites():
    assert sorted(file.stem for file in SUITES_DIR.glob("*")) == ["paper", "toy"]
    paper, toy = read_suite("paper"), read_suite("toy")
    assert list(paper.columns) == ["GQA", "MMBench", "MME", "POPE", "SEED", "SQA", "VQAv2"]
    assert set(paper.columns) == set(read_paper_table("table_1").counterparts)  # every column of the paper's Table 1
    assert (paper.max_new_tokens, paper.keep_answers) == (None, True)
    assert list(toy.columns.values()) == ["gqa", "mmbench_en_dev_static", "mme", "pope", "vqav2_val"]
    assert toy.rows["lower"] == SuiteRow("toy/instruct_long/final")
    assert paper.rows["upper"] == SuiteRow("instruct_7b/final", "full")


def test_a_suite_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("columns: {Q: gqa}\nrows: {a: {checkpoint: a/final, num_voco: 2}}\n")
    assert read_suite("mine", tmp_path) == Suite({"Q": "gqa"}, None, True, {"a": SuiteRow("a/final", "voco", 2)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {}", "a suite has columns"),
        ("[1]", "Cannot merge DictConfig with ListConfig"),
        ("columns: {Q: gqa}\ntasks: [1]", "unknown setting 'tasks'.* columns, max_new_tokens, keep_answers, rows"),
        ("columns: {Q: nothing}", "task 'nothing' is not known"),
        ("columns: {Q: gqa}\nrows: {a: {path: x}}", "unknown setting 'rows.a.path'"),
    ],
)
def test_bad_suites_are_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_suite("bad", tmp_path)
    with pytest.raises(SettingsError, match="no suite 'bed'; did you mean 'bad'"):
        read_suite("bed", tmp_path)


def test_tasks_by_name_are_columns_and_groups_are_taken_apart():
    assert columns_of(["gqa", "pope_full"]) == {name: name for name in ("gqa", "pope_adv", "pope_pop", "pope_random")}
    with pytest.raises(SettingsError, match="pope_pop is named twice"):
        columns_of(["pope_pop", "pope_full"])
