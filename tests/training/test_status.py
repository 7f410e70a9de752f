"""What `status` says of runs: that go, that ended, that were killed, and of files that are torn."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.commands import seen as seen_command
from tests.training.conftest import settings_in
from voco_llama import cli
from voco_llama.errors import SettingsError
from voco_llama.files import append_line, locked
from voco_llama.training.run import train
from voco_llama.training.run_files import (
    ANOMALIES_FILE,
    ENDED_FILE,
    ENVIRONMENT_FILE,
    LOCK_FILE,
    METRICS_FILE,
    RESULT_FILE,
    SETTINGS_FILE,
    note_anomaly,
)
from voco_llama.training.seen import records_file, seen
from voco_llama.training.status import StatusSettings, runs_in, status, status_of


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run of seven steps with checkpoints after each second one."""
    run = tmp_path_factory.mktemp("status") / "finished"
    more = ("trainer.max_steps=7", "trainer.save_strategy=steps", "trainer.save_steps=2")
    train(settings_in(world, run, "toy/voco_1", *more))
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, which may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_a_finished_run(run):
    found = status_of(run)
    assert (found.state, found.starts, found.step, found.steps, found.left) == ("finished", 1, 7, 7, 0)
    assert (found.rows, found.lost, found.repeated, found.anomalies) == (56, 0, 0, [])
    assert found.checkpoint[0] == "checkpoint-7"
    assert 0 < found.seconds < 60
    text = status(StatusSettings([str(run)]))
    assert f"{run}: finished; 1 start\n" in text
    assert "7 of 7 (100%), epoch 1.40" in text
    assert "checkpoint-7, written " in text
    assert "56 trained on, 0 lost, 0 repeated" in text
    assert "text + " in text


def test_a_run_at_work_a_killed_one_and_one_that_failed(run):
    (run / RESULT_FILE).unlink()
    with locked(run / LOCK_FILE):
        code = f"import sys; from voco_llama.cli import main; sys.exit(main(['status', {str(run)!r}]))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ": running (process " in other.stdout
    (run / ENDED_FILE).unlink()
    assert status_of(run).state == "killed"
    (run / ENDED_FILE).write_text(json.dumps({"time": 1.0, "status": 138, "text": "SIGUSR1: written"}))
    assert status_of(run).state == "ended with status 138: SIGUSR1: written"


def test_what_is_lost_and_odd_is_told(run):
    file = records_file(run, 0)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"step": 3,' not in line))
    for number in range(4):
        note_anomaly(run, "spike", number, f"the loss jumps {number}")
    found = status_of(run)
    assert (found.lost, found.repeated) == (8, 0)
    text = status(StatusSettings([str(run)]))
    assert "48 trained on, 8 lost, 0 repeated" in text
    assert "4 spike" in text
    assert "the loss jumps 0" not in text
    assert "step 3: the loss jumps 3" in text


def test_the_checkpoint_is_the_last_whole_one(run):
    (run / "checkpoint-7" / "optimizer.pt").write_bytes(b"")
    assert status_of(run).checkpoint[0] == "checkpoint-6"
    (run / "checkpoint-6" / "manifest.json").write_text("{")
    assert status_of(run).checkpoint is None


def test_time_between_two_starts_is_no_speed(tmp_path):
    (tmp_path / "settings.yaml").write_text("{}")
    for step, seconds in [(1, 10), (2, 20), (3, 30), (4, 40), (4, 5000), (5, 5010), (6, 5020)]:
        append_line(tmp_path / METRICS_FILE, {"step": step, "max_steps": 8, "time": seconds, "loss": 1.0})
    found = status_of(tmp_path)
    assert (found.seconds, found.left) == (10, 20)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"step": "x"}', '{"time": "x", "step": 1}\n{"ste'])
def test_torn_files_are_passed_over(run, text):
    for file in (METRICS_FILE, ANOMALIES_FILE, ENDED_FILE, RESULT_FILE, "environment.json", "records/rank_0.jsonl"):
        (run / file).write_text(text)
    assert status(StatusSettings([str(run)])).startswith(f"{run}: ")
    assert status(StatusSettings([str(run), str(run)])).count("\n") == 3


START = '{"start": 0, "processes": 1, "epoch_rows": 10, "step_rows": 4}\n'
STEP = '{"step": %s, "epoch": 0, "records": %s}\n'


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("records/rank_0.jsonl", START + STEP % (1, '[[1], {"a": 1}]')),
        ("records/rank_0.jsonl", START + STEP % ("9" * 400, "[1]")),
        ("records/rank_x.jsonl", START),
        ("records/rank_1.jsonl/x", ""),
        ("records/rank_\u00b2.jsonl", START),
        ("checkpoint-\u00b2/manifest.json", "{}"),
        ("result.json/x", ""),
        (METRICS_FILE, '{"step": 1, "time": 1, "max_steps": 5}\n{"step": 2, "time": 1e300, "max_steps": 1e308}\n'),
        (METRICS_FILE, '{"step": 1, "time": NaN, "loss": NaN}\n{"step": 2.5, "time": 5, "loss": %s}\n' % ("9" * 400)),
        (ANOMALIES_FILE, '{"time": 1e300, "step": 1, "kind": "nan", "text": "x"}\n'),
        (ANOMALIES_FILE, '{"time": NaN, "step": 1, "kind": "nan", "text": "x"}\n'),
        (ANOMALIES_FILE, '{"time": {}, "step": [], "kind": []}\n'),
        (ANOMALIES_FILE, json.dumps(dict.fromkeys(("step", "kind", "text"), "\x1b]0;a\x07\nx\u202e\ud800")) + "\n"),
        (ENDED_FILE, json.dumps({"status": "\x1b[2J", "text": "x\ny"})),
    ],
)
def test_a_strangers_files_break_neither_it_nor_the_terminal(tmp_path, file, text):
    run = tmp_path / "there"
    for path, content in ((run / SETTINGS_FILE, ""), (run / ENVIRONMENT_FILE, "[]"), (run / file, text)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / SETTINGS_FILE).touch()
    one, table = status(StatusSettings([str(run)])), status(StatusSettings([str(tmp_path)]))
    lines = (one + table).splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(table.splitlines()) == 3
    assert "there" in one
    assert "not begun" in table


def test_the_name_of_a_folder_does_not_reach_the_terminal_as_it_is(tmp_path):
    for name in ("one\x1b[2J", "two\n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SETTINGS_FILE).touch()
    assert "\x1b" not in status(StatusSettings([str(tmp_path / "one\x1b[2J")]))
    table = status(StatusSettings([str(tmp_path)]))
    assert "\x1b" not in table
    assert table.count("\n") == 3


def test_a_folder_that_cannot_be_read_is_one_row(tmp_path, monkeypatch):
    for name in ("mine", "theirs"):
        (tmp_path / name / "records").mkdir(parents=True)
        (tmp_path / name / SETTINGS_FILE).touch()

    def seen_unless_theirs(run):
        if run.name == "theirs":
            raise PermissionError(13, "Permission denied", str(run))
        return seen(run)

    monkeypatch.setattr("voco_llama.training.status.seen", seen_unless_theirs)
    table = status(StatusSettings([str(tmp_path)])).splitlines()
    assert table[1].endswith("not begun")
    assert "cannot be read" in table[2]


def test_several_runs_are_a_table(run, finished):
    text = status(StatusSettings([str(run.parent), str(finished)]))
    assert [line.split()[-1] for line in text.splitlines()] == ["state", "finished", "finished"]
    assert runs_in(run.parent) == [run]


def test_runs_are_found_two_folders_down_and_when_they_begin(tmp_path):
    """As quickstart has them; what writes no records, as stage clip, says nothing of any."""
    for name in ("toy/voco_1/settings.yaml", "toy/clip/.run.lock", "other/settings.yaml", "toy/data/image.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert runs_in(tmp_path) == [tmp_path / name for name in ("other", "toy/clip", "toy/voco_1")]
    assert "rows" not in status(StatusSettings([str(tmp_path / "other")]))
    assert status_of(tmp_path / "other").lost is None


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="^.* is no folder of a run, nor of runs: it has no settings.yaml$"):
        status(StatusSettings([str(tmp_path)]))
    with pytest.raises(SettingsError, match="name the folder of a run"):
        status(StatusSettings([]))


def test_folders_are_words_and_settings_too(run):
    for words in ([str(run)], [f"runs=[{run}]"], [f"paths.runs={run.parent}"]):
        assert f"{run}: finished" in seen_command(["status", *words]).out
    assert seen_command(["status", str(run / "nothing")]).is_refused
    assert seen_command(["status", str(run), "runs=[x]"]).is_refused


def test_nothing_slow_is_imported(run):
    code = (
        f"import sys; from voco_llama.cli import main; main(['status', {str(run)!r}]);"
        " sys.exit(len({'torch', 'transformers', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_nothing_is_written(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    status(StatusSettings([str(run)]))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_settings_are_a_list_of_folders():
    (field,) = dataclasses.fields(StatusSettings)
    assert cli.COMMANDS["status"].words == field.name
