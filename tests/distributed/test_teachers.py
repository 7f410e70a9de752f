"""A student with a frozen teacher: two processes give the loss curves of one; what divides weights divides its too.

Chunks are small, so that the processes have unequal numbers of them. Where they are divided, every weight is gathered
when it is needed, and batches are of one row, so that one process has an image and the other none.
"""

import json

import numpy as np
import pytest

from tests.distributed.launch import run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ONE_ROW = ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=4"]
READINGS = ["compression.num_voco=4", "compression.num_voco_choices=[1,2,4]", "compression.readings=3"]
ALL_GATHERED = "trainer.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
KL = ["loss=lm_kl", "loss.lm=0.5", "loss.chunk_size=16", "trainer.max_steps=4"]
TEACHERS = {
    "ddp": (["trainer=cpu"], [], {"engine": "VoCoLlama", "divided": False, "trains": False}),
    "zero3": (
        ["trainer=zero3"],
        [*ONE_ROW, ALL_GATHERED],
        {"engine": "DeepSpeedEngine", "divided": True, "trains": False},
    ),
    "fsdp2": (["trainer=fsdp2"], ONE_ROW, {"engine": "FSDPVoCoLlama", "divided": True, "trains": False}),
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
    group, more, expected = TEACHERS[engine]
    settings, folder = overrides(f"taught_{engine}", 2, *group, start=start)
    run(2, [*settings, *KL, *more, teacher])
    for rank in range(2):
        assert json.loads((folder / f"teacher_{rank}.json").read_text()) == expected
    for name, values in curves(folder).items():
        np.testing.assert_allclose(values, one_process[name], rtol=1e-4, err_msg=name)


def of_two(overrides, name: str, start, trainer: str, *more: str) -> dict[str, list[float]]:
    settings, folder = overrides(name, 2, f"trainer={trainer}", start=start)
    run(2, [*settings, *KL, *more])
    return curves(folder)


@pytest.mark.parametrize(("trainer", "more"), [("cpu", []), ("zero3", [*ONE_ROW, ALL_GATHERED])])
def test_the_reading_through_the_most_tokens_teaches_two_processes_as_one(overrides, teacher, trainer, more):
    start, taught = teacher.partition("=")[2], [*READINGS, "loss.teacher=most_voco"]
    settings, folder = overrides(f"most_one_{trainer}", 1, start=start)
    run(1, [*settings, *KL, *taught])
    two = of_two(overrides, f"most_{trainer}", start, trainer, *taught, *more)
    assert max(two["loss_kl"]) > 1e-4
    for name, values in curves(folder).items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("trainer", ["cpu", "zero2"])
def test_two_processes_write_the_answers_of_one(overrides, teacher, trainer):
    start, own = teacher.partition("=")[2], [*READINGS, teacher, "loss.own_answers=0.5"]
    settings, folder = overrides(f"own_one_{trainer}", 1, start=start)
    run(1, [*settings, *KL, *own])
    two = of_two(overrides, f"own_two_{trainer}", start, trainer, *own, *ONE_ROW)
    for name, values in curves(folder).items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-7, err_msg=name)
