"""Result files: written whole, and read whole or refused in one line."""

import json

import pytest

from tests.evaluation.rows import write_bounds
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.results import read_result, write_result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read \(Expecting property name .*\): evaluate the row again"),
        ("[]", r"cannot be read \(it holds a list"),
        ("{}", "is no result"),
        ('{"kind": "benchmarks", "format_version": 99}', "has result format 99"),
        ('{"kind": "benchmarks", "format_version": 1, "row": "x"}', "does not say its seed"),
    ],
)
def test_file_that_is_no_result(tmp_path, content, message):
    (tmp_path / "x.benchmarks.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_result(tmp_path / "x.benchmarks.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda result: result["benchmarks"]["GQA"].pop("value"),
            r"cannot be read \('value'\): evaluate the row again",
        ),
        (lambda result: result["benchmarks"]["GQA"].update(value="0.5"), "'0.5' stands where a number should"),
        (lambda result: result["benchmarks"].update(GQA=None), "cannot be read"),
        (lambda result: result.update(benchmarks=[1]), "cannot be read"),
        (lambda result: result.pop("kv_dtype"), r"cannot be read \('kv_dtype'\)"),
        (lambda result: result.pop("limit"), r"cannot be read \('limit'\)"),
        (lambda result: result.update(row=["x"]), "row is no text"),
    ],
)
def test_a_damaged_result_is_named(tmp_path, change, message):
    write_bounds(tmp_path)
    file = tmp_path / "upper.benchmarks.json"
    result = json.loads(file.read_text())
    change(result)
    file.write_text(json.dumps(result))
    with pytest.raises(DataError, match=f"upper.benchmarks.json: .*{message}"):
        read_result(file)


def test_a_kill_leaves_no_result_beside_the_answers_of_another(tmp_path, monkeypatch):
    write_result(tmp_path, "benchmarks", "row", {"seed": 0}, [{"answer": "old"}])
    monkeypatch.setattr("voco_llama.evaluation.results.json.dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_result(tmp_path, "benchmarks", "row", {"seed": 1}, [{"answer": "new"}])
    assert [file.name for file in tmp_path.iterdir()] == ["row.benchmarks.answers.jsonl"]


def test_a_result_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SettingsError, match=r"row.benchmarks.json: cannot be written \(Not a directory\): make room"):
        write_result(tmp_path / "out", "benchmarks", "row", {}, [])
