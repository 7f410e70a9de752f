"""Several processes watched: the rows that each trained on, and what the others do where one is lost or hangs."""

import pytest

from tests.distributed.launch import KILLED, STEPS, launch, run
from voco_llama.training.seen import EpochSeen, seen

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_rows_of_two_processes_are_counted_over_a_kill(overrides, start):
    """42 rows make 5 steps: both die in the second epoch."""
    settings, folder = overrides("rows", 2, start=start)
    two = [*settings, "trainer.save_strategy=steps", "trainer.save_steps=3"]
    assert KILLED in launch(2, ["train", *two], kill_at=7).statuses
    assert seen(folder).last in (6, 7)
    assert len(list((folder / "logs").glob("rank_*.log"))) == 2
    run(2, two)
    assert list(seen(folder).epochs()) == [EpochSeen(0, 40, 0, 0), EpochSeen(1, 24, 0, 0)]
    assert {len(entries) for _, entries in seen(folder).steps.values()} == {8}
    assert seen(folder).last == STEPS
    assert "step 8/8" in (folder / "logs" / "rank_0.log").read_text()
    assert "begins" in (folder / "logs" / "rank_1.log").read_text()
