"""Two processes give the loss curve of one with the same global batch: DDP, ZeRO-2, ZeRO-3, and after a kill.

The data has text-only rows: there are batches in which one process has images and the other has none.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import WORLD
from voco_llama.data.toyworld import write_toyworld

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ROOT = Path(__file__).parents[2]
STEPS = 8
KILLED = 17  # exit status by which worker.py dies
ENGINES = {
    "ddp": (["trainer=cpu"], {"engine": "DistributedDataParallel", "zero_stage": None, "processes": 2}),
    "zero2": (["trainer=zero2"], {"engine": "DeepSpeedEngine", "zero_stage": 2, "processes": 2}),
    "zero3": (["trainer=zero3"], {"engine": "DeepSpeedEngine", "zero_stage": 3, "processes": 2}),
}


def run(processes: int, overrides: list[str], kill_at: int = -1) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(Path(__file__).parent / "worker.py"), str(kill_at), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    if kill_at < 0:
        assert done.returncode == 0, done.stderr[-4000:]
    else:
        assert str(KILLED) in done.stderr, done.stderr[-4000:]
    return done.returncode


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "result.json").read_text())["loss_curve"]]


@pytest.fixture(scope="module")
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
            f"model.vision.name={folder / 'world' / 'clip' / 'tiny_clip.json'}",
            f"trainer.max_steps={STEPS}",
            f"trainer.per_device_train_batch_size={8 // processes}",
            "trainer.learning_rate=3.0e-3",
            "trainer.logging_steps=1",
            "trainer.report_to=none",
            "trainer.dataloader_num_workers=0",
            "trainer.use_cpu=true",
            "trainer.bf16=false",
            "trainer.save_strategy=no",
        ], folder / name

    return make


@pytest.fixture(scope="module")
def start(overrides):
    settings, folder = overrides("start", 1, start=None)
    run(1, [*settings, "trainer.max_steps=1"])
    return folder / "final"


@pytest.fixture(scope="module")
def one_process(overrides, start):
    settings, folder = overrides("one", 1, start=start)
    run(1, settings)
    curve = losses(folder)
    assert len(curve) == STEPS
    assert curve[-1] < curve[0]
    return curve


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_curve_of_one(overrides, start, one_process, engine):
    group, expected = ENGINES[engine]
    settings, folder = overrides(engine, 2, *group, start=start)
    run(2, settings)
    for rank in range(2):
        assert json.loads((folder / f"engine_{rank}.json").read_text()) == expected
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)

    from voco_llama.model.voco_llama import VoCoLlama

    ours, theirs = (
        VoCoLlama.from_pretrained(folder / "final"),
        VoCoLlama.from_pretrained(folder.parent / "one" / "final"),
    )
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), atol=2e-3, err_msg=name)


def test_two_processes_with_muon_give_the_curve_of_one(overrides, start):
    curves = {}
    for processes in (1, 2):
        settings, folder = overrides(f"muon_{processes}", processes, "optimizer=muon", start=start)
        run(processes, settings)
        curves[processes] = losses(folder)
    assert len(curves[1]) == STEPS
    np.testing.assert_allclose(curves[2], curves[1], rtol=1e-4)


def test_a_kill_in_the_second_epoch_changes_nothing(overrides, start, one_process):
    settings, folder = overrides("killed", 2, "trainer=zero3", start=start)
    settings += ["trainer.save_strategy=steps", "trainer.save_steps=6"]
    run(2, settings, kill_at=7)
    assert (folder / "checkpoint-6" / "trainer_state.json").is_file()
    assert not (folder / "result.json").exists()
    run(2, settings)
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)
