"""Suites are read whole or refused; the shipped ones ask known tasks."""

import json
from dataclasses import replace

import pytest

from voco_llama.errors import SettingsError
from voco_llama.evaluation.results import write_result
from voco_llama.evaluation.run import describe_run
from voco_llama.evaluation.settings import (
    SUITES_DIR,
    Suite,
    SuiteRow,
    check_overwritten,
    columns_of,
    fingerprint_asked,
    read_suite,
)
from voco_llama.inference import checkpoint_fingerprint
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


@pytest.fixture
def made(settings_for, tmp_path):
    """The settings of an evaluation whose result is there."""
    settings = settings_for(output=tmp_path / "results", tasks=["gqa"])
    columns = {"columns": {"gqa": "gqa"}, "max_new_tokens": 4}
    of = {"condition": "voco", "num_voco": 2, "limit": None, "kv_dtype": "float32", "suite": columns}
    of["benchmarks"] = {"gqa": {"questions": 3, "data_fingerprint": fingerprint_asked("content", 3)}}
    of["checkpoint_fingerprint"] = checkpoint_fingerprint(settings.checkpoint)
    write_result(settings.output, "benchmarks", "voco_2", of | describe_run(settings, 0.0), [])
    return settings


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"condition": "full"}, r"condition \(voco there, full now\), num_voco \(2 there, None now\)"),
        ({"num_voco": 1}, r"num_voco \(2 there, 1 now\)"),
        ({"limit": 6}, r"limit \(None there, 6 now\)"),
        ({"tasks": ["gqa", "pope"]}, r"columns.pope \(None there, pope now\)"),
        ({"max_new_tokens": 8}, r"max_new_tokens \(4 there, 8 now\)"),
        ({"hub": None}, r"hub \(.*hub there, None now\)"),
        ({"dtype": "bfloat16"}, r"dtype \(float32 there, bfloat16 now\)"),
    ],
)
def test_the_result_of_another_evaluation_is_not_written_over_unasked(made, changes, differing):
    message = rf"voco_2.benchmarks.json is the result of another evaluation: {differing}: set overwrite=true"
    with pytest.raises(SettingsError, match=message):
        check_overwritten(replace(made, **changes))
    check_overwritten(replace(made, **changes, overwrite=True))
    check_overwritten(replace(made, **changes, row="other"))


def test_nor_is_that_of_another_checkpoint(made, tmp_path):
    (tmp_path / "other").mkdir()
    config = json.loads((made.checkpoint / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))  # its weights are missing
    with pytest.raises(
        SettingsError, match=r"another evaluation: checkpoint \([0-9a-f]{8}... there, [0-9a-f]{8}... now"
    ):
        check_overwritten(replace(made, checkpoint=tmp_path / "other"))


def test_values_are_compared_as_the_model_has_them_and_hubs_by_content(made, tmp_path):
    same = replace(made, num_voco=2, dtype="float32", condition=None, hub=tmp_path / "moved")
    check_overwritten(same)
    check_overwritten(same, lambda: {"gqa": "content"})
    with pytest.raises(
        SettingsError, match=r"another evaluation: data.gqa \([0-9a-f]{8}... there, [0-9a-f]{8}... now\)"
    ):
        check_overwritten(made, lambda: {"gqa": "other"})


def test_its_own_result_and_a_damaged_one_are(made, caplog):
    check_overwritten(replace(made, batch_size=1, go_on=True, device="meta", seed=3))
    (made.output / "voco_2.benchmarks.json").write_text("{")
    check_overwritten(replace(made, limit=6))
    assert "voco_2.benchmarks.json: cannot be read" in caplog.text
    (made.output / "voco_2.benchmarks.json").write_text('{"kind": "benchmarks", "settings": 7}')
    with pytest.raises(SettingsError, match="another evaluation"):  # of another version
        check_overwritten(made)
