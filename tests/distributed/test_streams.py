"""A stream over two processes gives the loss curve of one, and goes on exactly after a kill in the second epoch."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.tables import LLAVA_TYPES, written
from tests.distributed.launch import STEPS, losses, run, run_until_killed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def table_of(world: Path, folder: Path) -> Path:
    rows = json.loads((world / "instruct" / "train.json").read_text())
    images = [(world / "instruct" / "images" / row["image"]).read_bytes() if "image" in row else None for row in rows]
    columns = {
        "id": [row["id"] for row in rows],
        "image": [image and {"bytes": image, "path": None} for image in images],
        "conversations": [row["conversations"] for row in rows],
    }
    return written(folder, columns, LLAVA_TYPES)


def test_two_processes_and_a_kill_give_the_curve_of_one(overrides, start, tmp_path):
    def settings_of(name: str, processes: int) -> tuple[list[str], Path]:
        settings, folder = overrides(name, processes, "trainer=cpu", start=start)
        world = next(entry for entry in settings if entry.startswith("paths.toyworld=")).partition("=")[2]
        source = f"data.sources=[{{format: hf_dataset, file: {table_of(Path(world), tmp_path)}}}]"
        stream = ("data.grouping=none", "data.streaming=true", "data.shuffle_buffer=8", "data.keep_in_memory=false")
        return [*settings, source, *stream], folder

    one, folder = settings_of("stream_one", 1)
    run(1, one)
    curve = losses(folder)
    assert len(curve) == STEPS

    two, folder = settings_of("stream_two", 2)
    two += ["trainer.save_strategy=steps", "trainer.save_steps=6"]
    run_until_killed(2, two, step=7)  # 42 rows make 5 batches of 8
    assert (folder / "checkpoint-6" / "trainer_state.json").is_file()
    run(2, [*two, "trainer.dataloader_num_workers=1"])  # one by which the rows come, as they came without
    np.testing.assert_allclose(losses(folder), curve, rtol=1e-4)
