"""Several processes watched: the rows that each trained on, and what the others do where one is lost or hangs."""

import json
import signal

import pytest

from tests.distributed.launch import KILLED, STEPS, launch, run
from voco_llama.files import read_json_lines
from voco_llama.training.seen import EpochSeen, seen

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_rows_of_two_processes_are_counted_over_a_kill(overrides, start):
    """42 rows make 5 steps: both die in the second epoch."""
    settings, folder = overrides("rows", 2, start=start)
    two = [*settings, "trainer.save_strategy=steps", "trainer.save_steps=3"]
    assert KILLED in launch(2, ["train", *two], kill_at=7).statuses
    assert seen(folder).last in (6, 7)
    assert len(list((folder / "logs").glob("rank_*.log"))) == 2
    run(2, two)
    assert list(seen(folder).epochs()) == [EpochSeen(0, 40, 0, 0), EpochSeen(1, 24, 0, 0)]
    assert {len(entries) for _, entries in seen(folder).steps.values()} == {8}
    assert seen(folder).last == STEPS
    assert "step 8/8" in (folder / "logs" / "rank_0.log").read_text()
    assert "begins" in (folder / "logs" / "rank_1.log").read_text()


@pytest.mark.parametrize("trainer", ["cpu", "zero2", "zero3", "fsdp2"])
def test_who_is_left_ends_soon_where_a_process_is_lost(overrides, start, trainer):
    settings, folder = overrides(f"lost_{trainer}", 2, f"trainer={trainer}", start=start)
    ended = launch(2, ["train", *settings], ends_all=False, KILL_AT="3")
    assert ended.statuses == [75, -signal.SIGKILL], ended.output[-3000:]
    assert "Traceback" not in ended.output
    assert ended.output.count("error: another process of the training is gone (") == 1
    (anomaly,) = read_json_lines(folder / "anomalies.jsonl")
    assert (anomaly["kind"], anomaly["step"], anomaly["process"]) == ("lost", 3, 0)
    log = (folder / "logs" / "rank_0.log").read_text()
    assert "training_step" in log
    assert "Current thread" in log
    assert json.loads((folder / "ended.json").read_text())["status"] == 75


def test_all_processes_end_where_one_stands_still(overrides, start):
    settings, folder = overrides("stall", 2, "stall_limit=5", start=start)
    ended = launch(2, ["train", *settings], ends_all=False, HANG_AT="3")
    assert ended.statuses == [75, 75], ended.output[-3000:]
    assert "Traceback" not in ended.output
    anomalies = list(read_json_lines(folder / "anomalies.jsonl"))
    assert [(each["kind"], each["step"]) for each in anomalies] == [("stall", 3)] * 2
    assert "in hang" in (folder / "logs" / "rank_1.log").read_text()
    assert "compute_loss" in (folder / "logs" / "rank_0.log").read_text()
    assert json.loads((folder / "ended.json").read_text())["status"] == 75


def test_who_waits_where_no_exception_reaches_it_ends_too(overrides, start):
    """As for a device that waits for the others."""
    settings, folder = overrides("out_of_reach", 2, start=start)
    ended = launch(2, ["train", *settings], ends_all=False, KILL_AT="3", FIRST_HANGS_AT="3")
    assert ended.statuses == [75, -signal.SIGKILL], ended.output[-3000:]
    assert ended.output.count("error: another process of the training is gone (") == 1
    assert [each["kind"] for each in read_json_lines(folder / "anomalies.jsonl")] == ["lost"]
    assert "in hang" in (folder / "logs" / "rank_0.log").read_text()


def test_a_mistake_stays_one_in_every_process(overrides, start):
    """They all stop at the same step, and not one after the other because another one is gone."""
    settings, folder = overrides("nan", 2, start=start)
    ended = launch(2, ["train", *settings, "trainer.learning_rate=1.0e+30"], ends_all=False)
    assert ended.statuses == [2, 2], ended.output[-3000:]
    assert ended.output.count("error: ") == 2
    (anomaly,) = read_json_lines(folder / "anomalies.jsonl")
    assert (anomaly["kind"], len(anomaly["records"])) == ("nan", 8)


def test_one_process_that_stands_still_ends(overrides, start):
    settings, folder = overrides("alone", 1, "stall_limit=3", start=start)
    ended = launch(1, ["train", *settings], FIRST_HANGS_AT="3")
    assert ended.statuses == [75], ended.output[-3000:]
    assert ended.output.splitlines()[-1].startswith("error: no step has ended for 3s (stall_limit) since step 3: ")
    assert json.loads((folder / "ended.json").read_text())["status"] == 75
