"""Two processes give the loss curve of one with the same global batch, under every backend, and after a kill.

The data has text-only rows: there are batches in which one process has images and the other has none.
"""

import json

import numpy as np
import pytest

from tests.distributed.launch import STEPS, launch, losses, run, run_until_killed, torchrun
from tests.parity.llava_files import tiny_llava, write_hub, write_own
from voco_llama.training.checkpoints import damage

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

DDP, ZERO, FSDP = "DistributedDataParallel", "DeepSpeedEngine", "FSDPVoCoLlama"
TORCH_ADAMW = "trainer.deepspeed.zero_force_ds_cpu_optimizer=false"
"""DeepSpeed's own would be compiled."""
ACCUMULATED = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"]
KEPT, AGAIN = (f"trainer.gradient_checkpointing={again}" for again in ("false", "true"))
"""Activations are kept, or computed again."""
ENGINES = {
    "ddp": (["trainer=cpu"], [KEPT], DDP, None),
    "ddp_accumulated": (["trainer=cpu"], [AGAIN, *ACCUMULATED], DDP, None),
    "zero1": (["trainer=zero1"], [AGAIN, *ACCUMULATED], ZERO, 1),
    "zero2": (["trainer=zero2"], [KEPT], ZERO, 2),
    "zero3": (["trainer=zero3"], [AGAIN], ZERO, 3),
    "zero3_offload": (["trainer=zero3_offload", TORCH_ADAMW], [KEPT, *ACCUMULATED], ZERO, 3),
    "fsdp2": (["trainer=fsdp2"], [AGAIN], FSDP, None),
    "fsdp2_accumulated": (["trainer=fsdp2"], [KEPT, *ACCUMULATED], FSDP, None),
}
"""Group and overrides, then what the Trainer wraps the model in, and ZeRO's level."""


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
    group, more, name, level = ENGINES[engine]
    settings, folder = overrides(engine, 2, *group, start=start)
    run(2, [*settings, *more])
    for rank in range(2):
        seen = json.loads((folder / f"engine_{rank}.json").read_text())
        assert seen == {"engine": name, "zero_stage": level, "processes": 2}
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)

    from voco_llama.model.voco_llama import VoCoLlama

    ours, theirs = (
        VoCoLlama.from_pretrained(folder / "final"),
        VoCoLlama.from_pretrained(folder.parent / "one" / "final"),
    )
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), atol=2e-3, err_msg=name)


def test_torchrun_with_muon_gives_the_curve_of_one(overrides, start):
    """README's command in two interpreters, each of which ends well: it has to leave the process group."""
    one, by_one = overrides("muon_1", 1, "optimizer=muon", start=start)
    run(1, one)
    two, by_two = overrides("muon_2", 2, "optimizer=muon", start=start)
    done = torchrun(2, ["train", *two])
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(losses(by_one)) == STEPS
    np.testing.assert_allclose(losses(by_two), losses(by_one), rtol=1e-4)


def test_a_kill_in_the_second_epoch_changes_nothing(overrides, start, one_process):
    settings, folder = overrides("killed", 2, "trainer=zero3", start=start)
    settings += ["trainer.save_strategy=steps", "trainer.save_steps=6"]
    run_until_killed(2, settings, step=7)
    assert (folder / "checkpoint-6" / "trainer_state.json").is_file()
    assert not (folder / "result.json").exists()
    run(2, settings)
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)


@pytest.mark.parametrize("group", ["trainer=cpu", "trainer=zero3"])
def test_a_signal_to_one_process_ends_all_at_the_same_step(overrides, start, one_process, group):
    settings, folder = overrides(f"signalled_{group.partition('=')[2]}", 2, group, start=start)
    ended = launch(2, ["train", *settings], SIGNAL_AT="3")
    assert 143 in ended.statuses, f"{ended.statuses}\n{ended.output[-4000:]}"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert damage(folder / "checkpoint-4") is None
    assert (folder / "checkpoint-4" / "rng_state_1.pth").exists()
    run(2, settings)
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)
    (folder / "result.json").unlink()
    (folder / "checkpoint-4" / "rng_state_1.pth").unlink()
    run(2, settings)  # both processes start anew
    np.testing.assert_allclose(losses(folder), one_process, rtol=1e-4)


@pytest.mark.parametrize(("layout", "divided"), [("llava", "zero3"), ("llava_hf", "zero3"), ("llava_hf", "fsdp2")])
def test_divided_weights_start_from_a_llava(overrides, tmp_path, layout, divided):
    """Its language model is filled from tensors at hand, which divided parameters must take over too."""
    llava = tiny_llava()
    folder = write_own(llava, tmp_path / "llava") if layout == "llava" else write_hub(llava, tmp_path / "llava", "old")
    curves = {}
    for processes, group in ((1, "trainer=cpu"), (2, f"trainer={divided}")):
        settings, output = overrides(f"{layout}_{divided}_{processes}", processes, group, start=folder)
        run(processes, settings)
        curves[processes] = losses(output)
    assert len(curves[1]) == STEPS
    np.testing.assert_allclose(curves[2], curves[1], rtol=1e-4)
