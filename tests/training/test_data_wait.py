"""The share of time that training waits for data: exact by a clock of our own, and of runs whose data or steps drag."""

import json
import logging
import time

import pytest

from voco_llama.data.processor import VoCoProcessor
from voco_llama.training import speed
from voco_llama.training.run import train
from voco_llama.training.speed import DataWait
from voco_llama.training.trainer import VoCoTrainer


class Clock:
    """Time that passes only when told."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def test_only_the_time_between_asking_and_getting_counts(clock):
    def batches():
        for seconds in (3, 0, 2):
            clock.now += seconds
            yield seconds
        clock.now += 1  # finding out that there is no more

    wait = DataWait()
    clock.now += 50
    wait.start()
    got = []
    for batch in wait.timed(batches()):
        clock.now += 8  # a step
        got.append(batch)
        if len(got) == 1:
            assert wait.take() == pytest.approx(3 / 11)
    assert got == [3, 0, 2]
    assert wait.take() == pytest.approx(3 / 19)
    assert wait.take() == 0
    assert wait.share == pytest.approx(6 / 30)


def test_the_iterator_may_be_asked_in_parts(clock):
    """As the Trainer does, a step's batches at a time."""
    wait, batches = DataWait(), iter(range(5))
    assert [next(wait.timed(batches)) for _ in range(2)] == [0, 1]
    assert list(wait.timed(batches)) == [2, 3, 4]


def test_an_error_of_the_data_passes_through(clock):
    def broken():
        clock.now += 1
        raise KeyError("x")
        yield

    wait = DataWait()
    with pytest.raises(KeyError):
        list(wait.timed(broken()))
    assert wait.share == 1


@pytest.fixture
def result_of(settings_for, caplog):
    """Runs four steps of two accumulated batches and returns `result.json` and the progress lines."""
    caplog.set_level(logging.INFO, "voco_llama")

    def run() -> tuple[dict, list[str]]:
        settings = settings_for(
            "toy/voco_1",
            "trainer.per_device_train_batch_size=2",
            "trainer.gradient_accumulation_steps=2",
            "data.keep_in_memory=false",
        )
        final = train(settings)
        lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
        return json.loads((final.parent / "result.json").read_text()), lines

    return run


@pytest.mark.slow
def test_slow_data_is_seen(result_of, monkeypatch):
    row = VoCoProcessor.row

    def slow_row(self, record):
        time.sleep(0.1)
        return row(self, record)

    start = VoCoTrainer.train

    def started_long_after_it_was_made(self, *args, **kwargs):
        self.data_wait._begun = self.data_wait._last = -1e6
        return start(self, *args, **kwargs)

    monkeypatch.setattr(VoCoProcessor, "row", slow_row)
    monkeypatch.setattr(VoCoTrainer, "train", started_long_after_it_was_made)
    result, lines = result_of()
    shares = [entry["data_wait_share"] for entry in result["loss_curve"]]
    assert len(shares) == 4
    assert all(0.5 < share <= 1 for share in shares)
    assert 0.5 < result["data_wait_share"] <= 1
    assert f"  data {shares[-1]:.0%}".replace("%", " %") in lines[-1]


@pytest.mark.slow
def test_slow_steps_are_not_taken_for_slow_data(result_of, monkeypatch):
    step = VoCoTrainer.training_step

    def slow_step(self, *args, **kwargs):
        time.sleep(0.3)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "training_step", slow_step)
    result, _ = result_of()
    assert all(0 <= entry["data_wait_share"] < 0.5 for entry in result["loss_curve"])
    assert 0 < result["data_wait_share"] < 0.5
