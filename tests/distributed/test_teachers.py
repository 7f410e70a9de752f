"""A student with a frozen teacher: two processes give the loss curves of one, and ZeRO-3 divides the teacher too.

Chunks are small, so that the processes have unequal numbers of them; some have no image in their batch.
"""

import json

import numpy as np
import pytest

from tests.distributed.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

KL = ["loss=lm_kl", "loss.lm=0.5", "loss.chunk_size=16", "trainer.max_steps=4"]
TEACHERS = {
    "ddp": ("trainer=cpu", {"engine": "VoCoLlama", "divided": False, "trains": False}),
    "zero3": ("trainer=zero3", {"engine": "DeepSpeedEngine", "divided": True, "trains": False}),
}


def curves(folder) -> dict[str, list[float]]:
    curve = json.loads((folder / "result.json").read_text())["loss_curve"]
    return {name: [entry[name] for entry in curve] for name in ("loss", "loss_lm", "loss_kl")}


@pytest.fixture(scope="module")
def teacher(overrides):
    """A model with opinions, far from the student that starts."""
    settings, folder = overrides("teacher", 1, "optimizer=muon", "stage=instruct", "compression=full", start=None)
    run(1, [*settings, "trainer.max_steps=40"])
    return f"loss.teacher_checkpoint={folder / 'final'}"


@pytest.fixture(scope="module")
def one_process(overrides, start, teacher):
    settings, folder = overrides("taught_one", 1, start=start)
    run(1, [*settings, *KL, teacher])
    found = curves(folder)
    assert found["loss_kl"][-1] < found["loss_kl"][0]
    return found


@pytest.mark.parametrize("engine", TEACHERS)
def test_two_processes_give_the_curves_of_one(overrides, start, teacher, one_process, engine):
    group, expected = TEACHERS[engine]
    settings, folder = overrides(f"taught_{engine}", 2, group, start=start)
    run(2, [*settings, *KL, teacher])
    for rank in range(2):
        assert json.loads((folder / f"teacher_{rank}.json").read_text()) == expected
    for name, values in curves(folder).items():
        np.testing.assert_allclose(values, one_process[name], rtol=1e-4, err_msg=name)
