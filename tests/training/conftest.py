"""A world of a few scenes on disk, and settings that train a model of a few thousand parameters on it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from voco_llama.composition import compose
from voco_llama.settings import TrainSettings
from voco_llama.toyworld import ToyWorldSettings, write_toyworld
from voco_llama.training.run import train
from voco_llama.training.trainer import VoCoTrainer

WORLD = ToyWorldSettings(
    pretrain_images=48,
    instruct_images=32,
    val_images=2,
    text_rows=24,
    clips_train=4,
    clips_test=2,
    benchmark_images=4,
    benchmark_questions=6,
    turns=3,
    choice_turns=0,
    text_only_share=0.3,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    clip_text_width=16,
    clip_text_layers=1,
    clip_embedding=16,
    language_width=32,
    language_mlp=48,
    language_layers=2,
    language_heads=2,
)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "toyworld"
    write_toyworld(WORLD, root)
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Steps this small spend their time waiting for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_in(world: Path, output_dir: Path, experiment: str, *overrides: str) -> TrainSettings:
    """Settings of an experiment on the little world, from random weights, without any saving or reporting."""
    questions = f"{{format: llava_json, file: {world}/instruct/train.json, media_folder: {world}/instruct/images}}"
    reads_questions = experiment.removeprefix("toy/") not in ("clip", "language", "align", "video")
    return compose(
        [
            f"experiment={experiment}",
            *([f"data.sources=[{questions}]"] if reads_questions else []),
            f"paths.toyworld={world}",
            f"output_dir={output_dir}",
            "model.checkpoint=null",
            f"model.vision.name={world}/clip/tiny_clip.json",
            "trainer.max_steps=4",
            "trainer.per_device_train_batch_size=8",
            "trainer.learning_rate=3.0e-3",
            "trainer.logging_steps=1",
            "trainer.save_strategy=no",
            "trainer.report_to=none",
            *overrides,
        ]
    )


@pytest.fixture
def settings_for(world, tmp_path) -> Callable[..., TrainSettings]:
    """`settings_in` for a run in this test's folder."""

    def make(experiment: str = "toy/instruct", *overrides: str) -> TrainSettings:
        return settings_in(world, tmp_path / "run", experiment, *overrides)

    return make


@pytest.fixture(scope="session")
def upper(world, tmp_path_factory) -> Path:
    """An upper bound, trained for long enough to have opinions: a teacher, and a start for students."""
    return train(settings_in(world, tmp_path_factory.mktemp("upper") / "run", "toy/instruct", "trainer.max_steps=40"))


@pytest.fixture
def killed_and_gone_on(monkeypatch) -> Callable[[TrainSettings], Path]:
    """Trains until a kill before the fourth step, and then on; the folder of the model."""

    def run(settings: TrainSettings) -> Path:
        steps, original = [], VoCoTrainer.training_step

        def killed(self, *args, **kwargs):
            steps.append(self.state.global_step)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(VoCoTrainer, "training_step", killed)
            with pytest.raises(KeyboardInterrupt):
                train(settings)
        return train(settings)

    return run


def losses(run: Path) -> list[float]:
    """The loss curve in the folder of a run."""
    return [entry["loss"] for entry in json.loads((run / "result.json").read_text(encoding="utf-8"))["loss_curve"]]


@pytest.fixture(scope="session")
def plain(world, tmp_path_factory) -> list[float]:
    """The loss curve of a short training of toy/voco_1."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train(settings_in(world, run, "toy/voco_1"))
    return losses(run)
