"""Checkpoints that are written while training goes on: what waits for what, and where errors end."""

import errno
import os
import threading
from pathlib import Path

import psutil
import pytest
import torch

from tests.training.conftest import losses, settings_in
from voco_llama.errors import Interrupted, SettingsError
from voco_llama.training.checkpoints import damage
from voco_llama.training.manifest import Manifest
from voco_llama.training.run import train
from voco_llama.training.saving import SavingTrainer, Writer
from voco_llama.training.trainer import VoCoTrainer

LIMIT = 60
"""Seconds after which what is waited for will not come."""


@pytest.fixture
def settings(settings_for):
    steps = ("trainer.max_steps=6", "trainer.save_strategy=steps", "trainer.save_steps=2")
    return settings_for("toy/voco_1", *steps)


@pytest.fixture
def before(monkeypatch):
    """Has something done before a method does its work."""

    def patch(owner, name: str, what) -> None:
        method = getattr(owner, name)

        def patched(self, *args, **kwargs):
            what(self)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, patched)

    return patch


def test_training_goes_on_while_a_checkpoint_is_written(settings, before):
    """Of step 2 only when step 4 is being made: and yet it holds what step 2 left, as without any of this."""
    went_on = threading.Event()
    before(VoCoTrainer, "training_step", lambda self: went_on.set() if self.state.global_step == 3 else None)
    found = []
    before(SavingTrainer, "_finish", lambda self: found.append(went_on.wait(LIMIT)))
    train(settings)
    assert found == [True] * 3
    run = Path(settings.output_dir)
    assert [damage(run / f"checkpoint-{step}") for step in (4, 6)] == [None, None]


def test_a_copy_holds_the_moment_at_which_it_was_taken(settings_for, tmp_path, before):
    """One that is written after the next step has been made, and one for which training waits."""
    steps = ("trainer.max_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=2")
    went_on = threading.Event()
    folders = [tmp_path / name / "checkpoint-2" for name in ("later", "at_once")]
    train_late = settings_for("toy/voco_1", *steps, f"output_dir={folders[0].parent}")
    with pytest.MonkeyPatch.context() as patch:
        finish, log = SavingTrainer._finish, VoCoTrainer.log
        patch.setattr(SavingTrainer, "_finish", lambda *args: went_on.wait(LIMIT) and finish(*args))
        patch.setattr(
            VoCoTrainer, "log", lambda self, *a: (self.state.global_step == 3 and went_on.set(), log(self, *a))
        )
        train(train_late)
    before(SavingTrainer, "get_batch_samples", lambda self: self.writer.join())
    train(settings_for("toy/voco_1", *steps, f"output_dir={folders[1].parent}"))
    for name in ("model.safetensors", "rng_state.pth"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in folders]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_one_is_written_at_a_time_and_the_end_waits_for_the_last(settings, before):
    """Each is begun when the one before has its name, however slowly that was written."""
    run, seen = Path(settings.output_dir), []

    def begins(self) -> None:
        seen.append(sorted(path.name for path in run.glob("checkpoint-*")))
        threading.Event().wait(0.3)

    settings.trainer["save_steps"] = 1
    settings.trainer["max_steps"] = 3
    before(SavingTrainer, "_finish", begins)
    train(settings)
    assert seen == [[], ["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]]
    assert damage(run / "checkpoint-3") is None


def test_a_signal_waits_for_the_one_that_is_being_written(settings, before):
    def gets_a_signal(self) -> None:
        if self.state.global_step == 2:
            os.kill(os.getpid(), 15)

    before(VoCoTrainer, "training_step", gets_a_signal)
    before(SavingTrainer, "_finish", lambda self: threading.Event().wait(0.3))
    with pytest.raises(Interrupted, match="checkpoint-3 was written"):
        train(settings)
    assert all(damage(Path(settings.output_dir) / f"checkpoint-{step}") is None for step in (2, 3))


def test_an_error_of_the_writer_ends_the_training_before_the_next_step(settings, before, monkeypatch):
    steps = []

    def fails(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before(Manifest, "write", fails)
    before(VoCoTrainer, "training_step", lambda self: (steps.append(self.state.global_step), self.writer.join()))
    with pytest.raises(SettingsError, match="cannot be written .No space left on device.: make room"):
        train(settings)
    assert steps in ([0, 1], [0, 1, 2])
    assert not list(Path(settings.output_dir).glob("checkpoint-*"))
    assert not (Path(settings.output_dir) / ".unfinished").exists()


def test_an_error_after_the_last_step_is_raised_too():
    writer = Writer()
    writer.begin(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()


def test_without_room_for_a_copy_training_waits(settings, before, monkeypatch, caplog, world, tmp_path):
    memory = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    left = []
    before(SavingTrainer, "_finish", lambda self: left.append(len(self._left)))
    with caplog.at_level("INFO"):
        train(settings)
    assert left == [0, 0, 0]
    assert "training stands still for each checkpoint" in caplog.text
    train(copied := settings_in(world, tmp_path / "copied", "toy/voco_1", "trainer.max_steps=6"))
    assert losses(Path(settings.output_dir)) == losses(Path(copied.output_dir))
