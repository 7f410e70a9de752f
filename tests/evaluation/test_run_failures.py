"""What becomes of an evaluation that is cut off, of questions that fail, and of tasks without a result."""

import struct
import zlib
from dataclasses import replace

import pytest

from tests.evaluation.hub import change_pope_image, write_pope
from tests.evaluation.runs import lines_of, save
from tests.tiny import tiny_processor
from voco_llama.errors import DataError
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import evaluate
from voco_llama.report.report import ReportSettings, report


def test_a_run_that_was_cut_off_goes_on(settings_for, tmp_path, monkeypatch):
    settings = settings_for(tasks=["gqa", "pope", "vqav2_val"], keep_answers=True, batch_size=2)
    monkeypatch.setattr("voco_llama.evaluation.answering.WINDOW_BATCHES", 1)
    whole = evaluate(replace(settings, row="whole"))
    window = Answerer._window
    windows = []

    def stop_at_the_third(self, asked):
        if len(windows) == 2:
            raise KeyboardInterrupt
        windows.append([question.id for question in asked])
        return window(self, asked)

    monkeypatch.setattr(Answerer, "_window", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    assert not (tmp_path / "voco_2.benchmarks.json").exists()
    monkeypatch.setattr(Answerer, "_window", window)

    other = save(tmp_path / "other", tiny_processor(num_voco=2, num_frames=3), seed=1)
    changed = read_result(evaluate(replace(settings, checkpoint=other, keep_answers=None, tasks=["gqa"], row="other")))
    assert changed["num_answers"] == changed["benchmarks"]["gqa"]["questions"]
    resumed = evaluate(settings)
    given = sum(len(asked) for asked in windows)
    assert read_result(resumed)["num_answers"] == read_result(whole)["num_answers"] - given
    assert lines_of(resumed) == lines_of(whole)
    assert not (tmp_path / "voco_2.responses").exists()


def test_a_question_that_failed_before_the_cut_is_still_listed(settings_for, monkeypatch):
    """Its empty answer is not taken for one, neither where the run goes on nor by a run that allows no failure."""
    monkeypatch.setattr("voco_llama.evaluation.answering.WINDOW_BATCHES", 1)
    look, window = Answerer._look, Answerer._window
    settings = settings_for(tasks=["pope"], keep_answers=True, go_on=True, batch_size=1)

    def break_one(self, question):
        if question.id == "pope document 1":
            raise OSError("broken image")
        return look(self, question)

    def stop(self, asked):
        if asked[0].id == "pope document 3":
            raise KeyboardInterrupt
        return window(self, asked)

    monkeypatch.setattr(Answerer, "_look", break_one)
    monkeypatch.setattr(Answerer, "_window", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    monkeypatch.setattr(Answerer, "_window", window)
    with pytest.raises(DataError, match="pope document 1: cannot be answered"):
        evaluate(replace(settings, go_on=False))
    result = read_result(evaluate(settings))
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    assert result["num_answers"] == 9 - 2


def test_failing_questions_are_listed_and_the_report_says_so(settings_for, tmp_path, monkeypatch):
    look = Answerer._look

    def break_one(self, question):
        if question.id == "pope document 1":
            raise OSError("broken image")
        return look(self, question)

    monkeypatch.setattr(Answerer, "_look", break_one)
    with pytest.raises(DataError, match="pope document 1: cannot be answered .*broken image"):
        evaluate(settings_for(tasks=["pope"]))
    assert not (tmp_path / "voco_2.benchmarks.json").exists()
    results = tmp_path / "results"
    evaluate(settings_for(tasks=["pope"], go_on=True, output=results, row="upper", condition="full"))
    monkeypatch.setattr(Answerer, "_look", look)
    evaluate(settings_for(tasks=["pope"], output=results, row="lower"))
    result = read_result(results / "upper.benchmarks.json")
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]
    with pytest.raises(DataError, match="left 1 questions unanswered"):
        report(ReportSettings(results, tmp_path / "report"))
    assert "INCOMPLETE: upper" in report(ReportSettings(results, tmp_path / "report", allow_limited=True))


def with_size(width, height):
    """A PNG file whose header says that it is so large."""

    def change(whole):
        header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
        return whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"GIF" + whole[3:], id="header"),
        pytest.param(lambda whole: whole[:50] + b"\xff" * 3 + whole[53:], id="content"),
        pytest.param(lambda whole: whole[:50], id="cut"),
        pytest.param(with_size(100_000, 100_000), id="huge"),
        pytest.param(lambda whole: b"", id="empty"),
    ],
)
def test_a_damaged_image_is_named(settings_for, tmp_path, damage):
    """Whatever is wrong with the file, and wherever it is noticed: when rows are read or when pixels are."""
    hub = tmp_path / "hub"
    write_pope(hub)
    change_pope_image(hub, 1, damage)
    with pytest.raises(DataError, match=r"^pope document 1: cannot be answered \(") as caught:
        evaluate(settings_for(tasks=["pope"], hub=hub))
    assert "\n" not in str(caught.value)
    result = read_result(evaluate(settings_for(tasks=["pope"], hub=hub, go_on=True)))
    assert [failure["id"] for failure in result["failures"]] == ["pope document 1"]


def test_a_task_without_a_result_leaves_no_file(settings_for, tmp_path, monkeypatch):
    from voco_llama.evaluation import lmms_evaluator

    run = lmms_evaluator.run_tasks

    def lose_pope(*arguments):
        found = run(*arguments)
        del found["samples"]["pope"]
        return found

    monkeypatch.setattr(lmms_evaluator, "run_tasks", lose_pope)
    with pytest.raises(DataError, match="task pope: lmms-eval gave no pope_f1_score"):
        evaluate(settings_for(tasks=["gqa", "pope"]))
    assert not (tmp_path / "voco_2.benchmarks.json").exists()
