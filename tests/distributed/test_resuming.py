"""A training handed from one backend, number of processes and accumulation to another: the curve of one process.

Each start is killed in the midst of a step and the next one goes on from what is whole. So each backend reads what
another one wrote, and writes what a third one reads.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launch import launch, losses, run, run_until_killed
from voco_llama.training.checkpoints import UNFINISHED, damage, damage_inside, last_whole
from voco_llama.training.manifest import MANIFEST_FILE, Manifest

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
"""Processes, backend and rows of a pass of each start; the global batch stays 8. Passes of 2 rows would end an epoch
after 42 rows, the others after 40."""


def check_faults_are_seen(checkpoint: Path) -> None:
    """A flipped bit and a missing end, in each file of the checkpoint."""
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST_FILE):
        data, name = file.read_bytes(), file.relative_to(checkpoint).as_posix()
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        assert name in damage_inside(checkpoint) or file.suffix == ".json"  # which says it in its own words
        file.write_bytes(data[:-1])
        assert f"{name} has {len(data) - 1} of {len(data)} bytes" in damage(checkpoint)
        file.write_bytes(data)
    assert damage_inside(checkpoint) is None


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
            check_faults_are_seen(last_whole(folder))
        else:
            run(processes, settings)
    assert [(origin.batch.processes, origin.batch.rows) for origin in wrote] == [(each[0], each[2]) for each in cut]
    assert {origin.rows_an_epoch for origin in wrote} == {40}
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)


@pytest.mark.parametrize("group", ["cpu", "fsdp2"])
def test_a_kill_of_the_thread_that_writes_leaves_the_checkpoint_before(overrides, start, one_process, group):
    settings, folder = overrides(f"writer_{group}", 2, f"trainer={group}", start=start)
    settings += [*STEPS, "trainer.save_steps=2"]
    ended = launch(2, ["train", *settings], WRITER_DIES_AT="4")
    assert -9 in ended.statuses, ended.output
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert any((folder / UNFINISHED / "checkpoint-4").iterdir())
    assert damage_inside(folder / "checkpoint-2") is None
    run(2, settings)
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)
    assert not (folder / UNFINISHED).exists()


def test_a_full_disk_under_fsdp_is_one_line(overrides, start):
    settings, folder = overrides("full", 2, "trainer=fsdp2", start=start)
    ended = launch(2, ["train", *settings, *STEPS], LARGEST_FILE="100000")
    assert 2 in ended.statuses, ended.output
    assert f"{folder} cannot be written (" in ended.output
    assert "Traceback" not in ended.output
    assert not list(folder.glob("checkpoint-*"))
