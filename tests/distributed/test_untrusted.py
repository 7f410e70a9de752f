"""What a stranger's checkpoint may do under DeepSpeed and FSDP, whose own code opens it: it runs none of its own."""

import pytest

from tests.distributed.launch import launch, run
from tests.training.test_untrusted import Harmful, put

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

FILES = {
    "zero2": "global_step*/*rank_1_*optim_states.pt",
    "zero3": "global_step*/*rank_1_*optim_states.pt",
    "fsdp2": "optimizer/.metadata",
}


@pytest.mark.parametrize("trainer", FILES)
def test_a_checkpoint_of_a_backend_runs_no_code(overrides, start, trainer, tmp_path):
    settings, folder = overrides(f"untrusted_{trainer}", 2, f"trainer={trainer}", start=start)
    settings += ["trainer.save_strategy=steps", "trainer.save_steps=2"]
    run(2, [*settings, "trainer.max_steps=2"])
    checkpoint = folder / "checkpoint-2"
    (file,) = checkpoint.glob(FILES[trainer])
    put(checkpoint, str(file.relative_to(checkpoint)), Harmful(tmp_path / "ran"))
    (folder / "result.json").unlink()
    ended = launch(2, ["train", *settings, "trainer.max_steps=2"], ends_all=False)
    assert 2 in ended.statuses, ended.output[-3000:]
    assert "Traceback" not in ended.output
    assert "holds more than" in ended.output
    assert not (tmp_path / "ran").exists()
