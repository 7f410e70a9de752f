"""What a stranger's checkpoint of DeepSpeed may do: DeepSpeed opens it, and none of its code is run."""

import pytest

from tests.distributed.launch import launch, run
from tests.training.test_untrusted import Harmful, put

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.mark.parametrize("trainer", ["zero2", "zero3"])
def test_a_checkpoint_of_deepspeed_runs_no_code(overrides, start, trainer, tmp_path):
    settings, folder = overrides(f"untrusted_{trainer}", 2, f"trainer={trainer}", start=start)
    settings += ["trainer.save_strategy=steps", "trainer.save_steps=2"]
    run(2, [*settings, "trainer.max_steps=2"])
    checkpoint = folder / "checkpoint-2"
    (file,) = checkpoint.glob("global_step*/*rank_1_*optim_states.pt")
    put(checkpoint, str(file.relative_to(checkpoint)), Harmful(tmp_path / "ran"))
    (folder / "result.json").unlink()
    ended = launch(2, ["train", *settings, "trainer.max_steps=2"], ends_all=False)
    assert 2 in ended.statuses, ended.output[-3000:]
    assert "Traceback" not in ended.output
    assert "checkpoint-2: a file of it holds more than data (Weights only load failed" in ended.output
    assert not (tmp_path / "ran").exists()
