"""Ctrl-C, SIGTERM and SIGUSR1: the checkpoint that is written first, and what the run becomes when it goes on."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.training.conftest import losses
from voco_llama import cli
from voco_llama.errors import Interrupted
from voco_llama.toyworld.train_clip import train_clip
from voco_llama.training import interrupts
from voco_llama.training.checkpoints import damage
from voco_llama.training.run import train
from voco_llama.training.trainer import VoCoTrainer

STEPS = ("trainer.max_steps=7", "trainer.save_strategy=steps", "trainer.save_steps=500")


@pytest.fixture
def signalled(monkeypatch):
    """Sends signals to this process in the midst of its `step`-th step, from 1."""

    def at(step: int, *numbers: int) -> None:
        method = VoCoTrainer.training_step

        def gets_signals(self, *args, **kwargs):
            if self.state.global_step == step - 1:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(VoCoTrainer, "training_step", gets_signals)

    return at


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_is_written_first_and_the_run_ends_as_if_nothing_was(
    settings_for, signalled, tmp_path, number, status, capfd, monkeypatch
):
    workers = ("trainer.dataloader_num_workers=1", "data.keep_in_memory=false")
    whole, cut = (settings_for("toy/voco_1", *STEPS, *workers, f"output_dir={tmp_path / name}") for name in ("a", "b"))
    train(whole)
    handlers = [signal.getsignal(each) for each in interrupts.SIGNALS]
    signalled(6, number)  # 42 rows make 5 steps: in the second epoch
    with pytest.raises(Interrupted) as caught:
        train(cut)
    monkeypatch.undo()
    run, name = Path(cut.output_dir), signal.Signals(number).name
    assert caught.value.status == status
    assert str(caught.value) == f"{name}: {run}/checkpoint-6 was written, and the same command again goes on from it"
    assert f"{name}: this ends after the step, with a checkpoint" in capfd.readouterr().err
    assert not (run / "final").exists()
    assert [signal.getsignal(each) for each in interrupts.SIGNALS] == handlers

    train(cut)
    assert losses(run) == losses(Path(whole.output_dir))
    weights = [(Path(each.output_dir) / "final" / "model.safetensors").read_bytes() for each in (whole, cut)]
    assert weights[0] == weights[1]
    assert len(json.loads((run / "environment.json").read_text())) == 2


def test_the_log_has_the_steps_before_in_an_entry_of_their_own(settings_for, signalled, monkeypatch):
    settings = settings_for("toy/voco_1", *STEPS, "trainer.logging_steps=5", "trainer.logging_first_step=false")
    signalled(3, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(settings)
    monkeypatch.undo()
    train(settings)
    result = json.loads((Path(settings.output_dir) / "result.json").read_text())
    assert [entry["step"] for entry in result["loss_curve"]] == [3, 5, 7]


def test_ctrl_c_again_leaves_at_once_and_a_launchers_second_does_not(settings_for, signalled, monkeypatch):
    settings = settings_for("toy/voco_1", *STEPS)
    signalled(2, signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(Interrupted, match="checkpoint-2 was written"):
        train(settings)
    monkeypatch.undo()
    monkeypatch.setattr(interrupts, "SAME_SECONDS", -1)
    signalled(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^SIGINT again: .* from the last checkpoint before$") as caught:
        train(settings)
    assert caught.value.status == 130
    assert not list(Path(settings.output_dir).glob("checkpoint-3"))


@pytest.mark.parametrize("moment", ["open_mixture", "build_or_load"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_before_the_first_step_a_signal_ends_it_at_once(settings_for, monkeypatch, moment, number, status):
    def loads(*args):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(f"voco_llama.training.run.{moment}", loads)
    text = f"^{signal.Signals(number).name}: the same command again goes on from what is finished"
    with pytest.raises(Interrupted, match=text) as caught:
        train(settings_for("toy/voco_1", *STEPS))
    assert caught.value.status == status


def test_data_workers_live_on_after_signals_that_all_processes_get(settings_for, monkeypatch):
    method = VoCoTrainer.training_step

    def signals_workers(self, *args, **kwargs):
        if self.state.global_step == 1:
            for worker in multiprocessing.active_children():
                for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
                    os.kill(worker.pid, number)
                assert worker.is_alive()
        return method(self, *args, **kwargs)

    monkeypatch.setattr(VoCoTrainer, "training_step", signals_workers)
    more = ("trainer.dataloader_num_workers=1", "data.keep_in_memory=false")
    train(settings_for("toy/voco_1", *STEPS, *more))


def test_the_clip_stage_too(settings_for, signalled):
    settings = settings_for(
        "toy/clip",
        *STEPS,
        "trainer.save_only_model=true",
        "trainer.per_device_train_batch_size=16",
        "trainer.learning_rate=3.0e-3",
    )
    signalled(4, signal.SIGTERM)
    with pytest.raises(Interrupted, match="checkpoint-4 was written"):
        train_clip(settings)
    assert damage(Path(settings.output_dir) / "checkpoint-4") is None


def test_the_command_ends_in_the_signals_status(monkeypatch, capsys):
    def ends(settings) -> None:
        """Ends."""
        raise Interrupted(signal.SIGTERM, "SIGTERM: this and that")

    command = cli.Command(ends, "voco_llama.asking:AskSettings", "ask")
    monkeypatch.setitem(cli.COMMANDS, "ask", command)
    assert cli.main(["ask", "checkpoint=a", "image=b", "questions=[c]"]) == 143
    assert capsys.readouterr().err == "SIGTERM: this and that\n"
