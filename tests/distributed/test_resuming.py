"""A training handed from one backend, number of processes and accumulation to another: the curve of one process.

Each start is killed in the midst of a step and the next one goes on from what is whole. So each backend reads what
another one wrote, and writes what a third one reads.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launch import launch, losses, run, run_until_killed
from voco_llama.training.checkpoints import damage, last_whole
from voco_llama.training.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = ("trainer.max_steps=12", "trainer.save_strategy=steps", "trainer.save_steps=1", "trainer.save_total_limit=2")
"""In the third epoch: one of 42 records has 5 steps."""


@pytest.fixture(scope="module")
def one_process(overrides, start):
    settings, folder = overrides("whole", 1, *STEPS, start=start)
    run(1, [*settings, *STEPS, "trainer.save_strategy=no"])
    curve = losses(folder)
    assert len(curve) == 12
    return curve


ONE = (1, "trainer=cpu", 8)
DDP, ZERO_1, ZERO_2, ZERO_3, FSDP = ((2, f"trainer={name}", 4) for name in ("cpu", "zero1", "zero2", "zero3", "fsdp2"))
CHAINS = {
    "up": (ONE, DDP, (2, "trainer=zero2", 1), ZERO_3, FSDP, ONE),
    "down": (FSDP, ZERO_1, ONE, ZERO_3, DDP),
}
"""Processes, backend and rows of a pass of each start; the global batch stays 8. A pass of 2 rows ends after 42 rows and
not after 40, as the others do."""


@pytest.mark.parametrize("chain", CHAINS)
def test_a_training_goes_on_anywhere(overrides, start, one_process, chain):
    *cut, last = CHAINS[chain]
    wrote = []
    for number, (processes, group, rows) in enumerate([*cut, last]):
        settings, folder = overrides(chain, processes, group, start=start)
        settings += [*STEPS, f"trainer.per_device_train_batch_size={rows}", "global_batch_size=8"]
        if number < len(cut):
            run_until_killed(processes, settings, step=2 * number + 2)
            wrote.append(Manifest.read(last_whole(folder)).origin)
        else:
            run(processes, settings)
    assert [(origin.batch.processes, origin.batch.rows) for origin in wrote] == [(each[0], each[2]) for each in cut]
    assert {origin.rows_an_epoch for origin in wrote} == {40}
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)
