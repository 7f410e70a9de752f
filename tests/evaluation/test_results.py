"""Result files: written whole, and read whole or refused in one line."""

import json

import pytest

from tests.evaluation.rows import write_bounds, write_clips
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
        (lambda result: result["benchmarks"]["GQA"].update(value="0.5"), r"value is '0.5', no int \| float"),
        (lambda result: result["benchmarks"].update(GQA=None), "cannot be read"),
        (lambda result: result.update(benchmarks=[1]), "cannot be read"),
        (lambda result: result.pop("kv_dtype"), r"cannot be read \('kv_dtype'\)"),
        (lambda result: result.pop("limit"), r"cannot be read \('limit'\)"),
        (lambda result: result.update(row=["x"]), r"row is \['x'\], no str"),
        (lambda result: result.update(row="a\nb"), r"row is 'a\\nb', no name of a row"),
        (lambda result: result.update(kv_bytes_per_image="1"), "kv_bytes_per_image is '1', no int"),
        (lambda result: result["benchmarks"]["GQA"]["details"].update(unreadable="1"), "unreadable is '1', no int"),
        (lambda result: result.update(failures=3), "cannot be read"),
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


@pytest.mark.parametrize(
    ("fact", "value"),
    [("num_frames", "4"), ("kv_bytes_per_clip", "8192"), ("tokens_per_clip", None), ("questions", True)],
)
def test_a_damaged_result_on_clips_is_named(tmp_path, fact, value):
    file = write_clips(tmp_path, "video", 0.5, 0.25, **{fact: value})
    with pytest.raises(DataError, match=rf"video.clips.json: cannot be read \({fact} is {value!r}, no int\): evaluate"):
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
