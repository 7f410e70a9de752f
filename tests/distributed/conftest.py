"""A world, settings of runs on it, and a checkpoint that all of them start from."""

from pathlib import Path

import pytest

from tests.distributed.launch import STEPS, run
from tests.training.conftest import WORLD
from voco_llama.toyworld import write_toyworld


@pytest.fixture(scope="session")
def overrides(tmp_path_factory):
    """Settings of a run of `STEPS` steps with a global batch of 8, from a saved checkpoint."""
    folder = tmp_path_factory.mktemp("distributed")
    write_toyworld(WORLD, folder / "world")

    def make(name: str, processes: int, *more: str, start: Path | None) -> tuple[list[str], Path]:
        return [
            "experiment=toy/voco_1",
            "optimizer=trainer",
            *more,
            f"paths.toyworld={folder / 'world'}",
            f"output_dir={folder / name}",
            f"model.checkpoint={start or 'null'}",
            *([] if start else [f"model.vision.name={folder / 'world' / 'clip' / 'tiny_clip.json'}"]),
            f"trainer.max_steps={STEPS}",
            f"trainer.per_device_train_batch_size={8 // processes}",
            "trainer.learning_rate=3.0e-3",
            "projector_learning_rate=1.0e-3",
            "trainer.logging_steps=1",
            "trainer.report_to=none",
            "trainer.dataloader_num_workers=0",
            "trainer.use_cpu=true",
            "trainer.bf16=false",
            "trainer.save_strategy=no",
        ], folder / name

    return make


@pytest.fixture(scope="session")
def start(overrides):
    settings, folder = overrides("start", 1, start=None)
    run(1, [*settings, "trainer.max_steps=1"])
    return folder / "final"
