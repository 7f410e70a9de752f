"""A training watched: data workers that die, steps that do not end, losses that are no numbers or jump."""

import json
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from voco_llama import cli
from voco_llama.data.records import name_record
from voco_llama.errors import LostError, SettingsError
from voco_llama.files import read_json_lines
from voco_llama.training.build import open_mixture
from voco_llama.training.loss_watch import is_jump
from voco_llama.training.run import train
from voco_llama.training.seen import EpochSeen, seen

STEPS = ("trainer.max_steps=7", "trainer.save_strategy=steps", "trainer.save_steps=2")


def anomalies(settings) -> list[dict]:
    return list(read_json_lines(Path(settings.output_dir) / "anomalies.jsonl"))


def ended(settings) -> dict:
    return json.loads((Path(settings.output_dir) / "ended.json").read_text())


@pytest.fixture
def at_step(monkeypatch):
    """Does something with the Trainer and the loss in the midst of its `step`-th step, from 1; it returns the loss."""
    method = Trainer.training_step

    def make(step: int, happens):
        def training_step(self, *args, **kwargs):
            loss = method(self, *args, **kwargs)
            return loss if self.state.global_step != step - 1 else happens(self, loss)

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return make


def test_a_dead_data_worker_is_one_line_and_nothing_is_lost(settings_for, at_step, monkeypatch):
    def kills_a_worker(trainer, loss):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(5)  # until torch hears of it
        return loss

    settings = settings_for("toy/voco_1", *STEPS, "trainer.dataloader_num_workers=1", "data.keep_in_memory=false")
    at_step(4, kills_a_worker)
    with pytest.raises(LostError, match=r"^a process that loads data is gone \(DataLoader worker \(pid \d+\) is kil"):
        train(settings)
    (anomaly,) = anomalies(settings)
    assert (anomaly["kind"], anomaly["step"]) == ("worker", 3)
    assert ended(settings)["status"] == 75
    monkeypatch.undo()
    train(settings)
    assert list(seen(Path(settings.output_dir)).epochs()) == [EpochSeen(0, 40, 0, 0), EpochSeen(1, 16, 0, 0)]
    assert ended(settings)["status"] == 0


def poisons(trainer, loss):
    """As a gradient that is too large does it."""
    next(p for p in trainer.model.parameters() if p.requires_grad).grad.fill_(math.nan)
    return loss


@pytest.mark.parametrize("logging_steps", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_no_checkpoint_is_written_of_weights_that_are_no_numbers(settings_for, at_step, logging_steps):
    settings = settings_for("toy/voco_1", *STEPS, f"trainer.logging_steps={logging_steps}", "trainer.max_grad_norm=0")
    at_step(4, poisons)
    with pytest.raises(SettingsError, match=r"(weights|norm).* step 4, by one of \S+ record \d+, .* and \d+ more"):
        train(settings)
    assert [path.name for path in Path(settings.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    (anomaly,) = anomalies(settings)
    assert (anomaly["kind"], anomaly["step"]) == ("nan", 4)
    assert len(anomaly["records"]) == 8 * (1 if logging_steps == 1 else 2)  # the second step is logged too


def test_the_rows_of_the_pass_whose_loss_is_no_number_are_named(settings_for, at_step):
    """Found three steps later, at the log entry."""
    passes = []

    def is_none_in_the_second_pass(trainer, loss):
        passes.append(loss)
        return loss if len(passes) == 1 else torch.full_like(loss, math.nan)

    more = ("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2", "trainer.logging_steps=7")
    settings = settings_for("toy/voco_1", "trainer.max_steps=7", *more)
    at_step(4, is_none_in_the_second_pass)
    with pytest.raises(SettingsError, match="^the loss is nan at step 5, first on .* and 1 more"):
        train(settings)
    run, mixture = Path(settings.output_dir), open_mixture(settings)
    _, entries = seen(run).steps[4]
    (anomaly,) = anomalies(settings)
    assert anomaly["records"] == [
        name_record(mixture.readers[0].file, mixture.origin(entry)[1]) for entry in entries[4:]
    ]
    assert ended(settings)["status"] == 2


def test_a_jump_of_the_loss_is_noted_once_with_its_rows(settings_for, at_step, caplog):
    def jumps(trainer, loss):
        trainer.loss_watch._losses.extend([loss.item()] * 30)
        return loss * 3

    settings = settings_for("toy/voco_1", "trainer.max_steps=7")
    at_step(4, jumps)
    train(settings)
    (anomaly,) = anomalies(settings)
    assert (anomaly["kind"], anomaly["step"], len(anomaly["records"])) == ("spike", 4, 8)
    assert sum("the loss jumps to" in record.message for record in caplog.records) == 1


def curve(steps: int, noise: float) -> list[float]:
    """A loss as trainings have it: it falls from 8 to 2, first fast."""
    draw = random.Random(0)
    return [(2 + 6 * math.exp(-step / 40)) * (1 + draw.gauss(0, noise)) for step in range(steps)]


@pytest.mark.parametrize("noise", [0, 0.01, 0.1])
def test_an_ordinary_curve_has_no_jumps(noise):
    losses = curve(1000, noise)
    assert [step for step in range(1000) if is_jump(losses[step], losses[max(step - 100, 0) : step])] == []


def test_batches_of_two_kinds_make_no_jumps():
    """As text alone and images in turn, one of which is rarer."""
    draw = random.Random(0)
    losses = [draw.choices((1.0, 1.8), (0.85, 0.15))[0] * (1 + draw.gauss(0, 0.02)) for _ in range(1000)]
    assert [step for step in range(100, 1000) if is_jump(losses[step], losses[step - 100 : step])] == []


def test_a_jump_is_far_above_what_was_before():
    losses = curve(400, 0.02)
    assert is_jump(1.5 * losses[-1], losses[-100:])
    assert is_jump(1.5 * losses[-1], [*losses[-99:], 100.0])  # one before does not hide it
    assert not is_jump(1.05 * losses[-1], losses[-100:])
    assert not is_jump(10 * losses[-1], losses[-19:])


def test_the_command_ends_in_the_status_of_what_may_go_on(monkeypatch, capsys):
    def ends(settings) -> None:
        """Ends."""
        raise LostError("another process is gone")

    monkeypatch.setitem(cli.COMMANDS, "ask", cli.Command(ends, "voco_llama.asking:AskSettings", "ask"))
    assert cli.main(["ask", "checkpoint=a", "image=b", "questions=[c]"]) == 75
    assert capsys.readouterr().err == "error: another process is gone\n"
