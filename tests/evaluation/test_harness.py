"""The surroundings of lmms-eval."""

import fcntl
import json
import os
import re
from pathlib import Path

import datasets
import pytest

from voco_llama.errors import SettingsError
from voco_llama.evaluation.harness import Harness, forget_empty_answers, state_of_files, surroundings, working_folder


@pytest.fixture
def harness(tmp_path):
    """Of a hub with one data set."""
    data = tmp_path / "hub" / "owner" / "data"
    data.mkdir(parents=True)
    (data / "README.md").write_text("card")
    return Harness(tmp_path / "hub", tmp_path, tmp_path / "cache", None, tmp_path / "out" / "row.files")


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_processes_than_cores_are_forked(harness, monkeypatch, cores):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    rows = datasets.Dataset.from_list([{"number": number} for number in range(12)])
    before = datasets.Dataset.map
    with working_folder(harness), surroundings(harness, "run"):
        mapped = rows.map(lambda row: {"process": os.getpid()}, num_proc=8)
    assert len(set(mapped["process"])) == cores
    assert mapped["number"] == rows["number"]
    assert datasets.Dataset.map is before


def test_what_was_there_before_is_put_back(harness, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", "mine")
    monkeypatch.setenv("HF_HOME", "home")
    monkeypatch.delenv("LMMS_CACHE_RUN_ID", raising=False)

    def now():
        return dict(os.environ), datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE, Path.cwd()

    before = now()
    with working_folder(harness), surroundings(harness, "run"):
        assert os.environ["LMMS_CACHE_RUN_ID"] == "run"
        assert os.environ["HF_DATASETS_CACHE"] == datasets.config.HF_DATASETS_CACHE == str(harness.datasets_cache)
        assert os.environ["HF_HOME"] == str(before[-1] / "home")  # relative to where the command was typed
        assert Path.cwd() == harness.work
        assert Path("owner/data/README.md").read_text() == "card"
    assert now() == before


def test_what_a_task_writes_into_its_working_directory_is_the_rows(harness):
    """Beside what it writes below `output_path`; what an earlier evaluation wrote is gone, the hub as it was."""
    harness.submissions.mkdir(parents=True)
    (harness.submissions / "of_another_time.json").write_text("{}")
    with working_folder(harness), surroundings(harness, "run"):
        Path("seed_submission.json").write_text("[]")
        (harness.work / "submissions").mkdir()
        (harness.work / "submissions" / "x.json").write_text("[]")
    written = sorted(file.relative_to(harness.submissions.parent) for file in harness.submissions.parent.rglob("*"))
    assert [str(file) for file in written] == [
        "row.files", "row.files/seed_submission.json", "row.files/submissions", "row.files/submissions/x.json"
    ]  # fmt: skip
    assert [path.name for path in sorted(harness.hub.rglob("*"))] == ["owner", "data", "README.md"]


def test_a_failed_evaluation_leaves_the_files_of_the_one_before(harness):
    harness.submissions.mkdir(parents=True)
    (harness.submissions / "x.json").write_text("before")

    def fail():
        with working_folder(harness):
            (harness.work / "x.json").write_text("now")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in harness.submissions.parent.iterdir()] == ["row.files"]
    assert (harness.submissions / "x.json").read_text() == "before"


def test_what_a_kill_left_of_the_working_folder_is_cleared(harness):
    harness.work.mkdir(parents=True)
    (harness.work / "owner").symlink_to(harness.hub / "owner")
    (harness.work / "seed_submission.json").write_text("[")
    harness.work.with_name(f"{harness.work.name}.lock").touch()
    with working_folder(harness):
        assert [path.name for path in harness.work.iterdir()] == ["owner"]
    assert list(harness.submissions.parent.iterdir()) == []
    assert (harness.hub / "owner" / "data" / "README.md").is_file()


def test_one_evaluation_at_a_time(harness):
    lock = harness.work.with_name(f"{harness.work.name}.lock")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another process holds it
        line = rf"process \w+ is at work in {lock.parent} \(it holds {re.escape(lock.name)}\): wait for it, or stop it"
        with pytest.raises(SettingsError, match=line):
            working_folder(harness).__enter__()
    with working_folder(harness):
        pass


def test_an_output_that_cannot_be_written(harness):
    harness.submissions.parent.write_text("a file")
    with pytest.raises(SettingsError, match=r"out cannot be written \(File exists\): name another folder"):
        working_folder(harness).__enter__()


def test_answers_that_were_kept_are_read_however_a_kill_left_them(tmp_path):
    """Half a line, half a character, a line without its end, a data base that is none."""
    whole = [json.dumps({"response": json.dumps(text, ensure_ascii=False)}, ensure_ascii=False) for text in "aé"]
    torn = [
        json.dumps({"response": json.dumps(" ")}).encode(), b"[]", b"{}", b'{"response": "1"}', b'{"response": 7}',
        whole[1].encode()[: whole[1].encode().index("é".encode()) + 1],
    ]  # fmt: skip
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "rank_0.audit.jsonl").write_bytes(b"\n".join([whole[0].encode(), *torn, whole[1].encode()]))
    for name in ("rank_0.db", "rank_0.db-wal"):
        (run / name).write_text("no data base")
    forget_empty_answers(tmp_path)
    assert [file.name for file in run.iterdir()] == ["rank_0.audit.jsonl"]
    assert (run / "rank_0.audit.jsonl").read_text(encoding="utf-8") == "".join(f"{line}\n" for line in whole)


def test_a_link_that_leads_nowhere_is_no_obstacle(tmp_path):
    """A clip that was moved away is found out when it is asked about."""
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "gone.mp4")
    assert state_of_files(tmp_path) == state_of_files(tmp_path)
