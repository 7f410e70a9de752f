"""What the settings choose to divide, and what follows from it; the refusals are among those of `training.checks`."""

import json
import shutil

import pytest
from torch import nn

from voco_llama.composition import compose
from voco_llama.errors import SettingsError
from voco_llama.sharding import (
    Fsdp,
    Sharding,
    Zero,
    num_elements,
    sharding_of,
    undivided,
    weights_are_divided,
    whole,
    whole_head,
)


def trainer_of(*overrides: str) -> dict:
    return compose(overrides).trainer


def test_the_settings_choose():
    assert sharding_of(trainer_of()) == Sharding()
    fsdp = sharding_of(trainer_of("trainer=fsdp2", "trainer.fsdp_config.reshard_after_forward=false"))
    assert (type(fsdp), fsdp.reshards, fsdp.cuts_weights) == (Fsdp, False, True)
    two, three = (sharding_of(trainer_of(f"trainer=zero{level}")) for level in (2, 3))
    assert (two.level, two.offloads, two.cuts_weights) == (2, (), False)
    assert (three.level, three.max_live, three.cuts_weights) == (3, 10**9, True)
    assert sharding_of(undivided(trainer_of("trainer=zero3"))) == Sharding()


def test_a_configuration_may_be_a_file(tmp_path):
    here = trainer_of("trainer=zero3", "trainer.deepspeed.zero_optimization.offload_param.device=cpu")
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(here["deepspeed"]))
    assert sharding_of({"deepspeed": str(file)}) == sharding_of(here)
    file.write_text("{")
    with pytest.raises(SettingsError, match=r"zero.json: cannot be read (.*): trainer.deepspeed names"):
        sharding_of({"deepspeed": str(file)})


def test_overrides_lead_from_one_to_another():
    offload = "trainer.deepspeed.zero_optimization.offload_optimizer.device=cpu"
    assert Zero(3).overrides(Sharding()) == ("trainer=zero3",)
    assert Zero(3, ("optimizer",)).overrides(Zero(2)) == ("trainer=zero3", offload)
    assert Zero(2, ("optimizer",)).overrides(Zero(2)) == (offload,)
    settings = trainer_of(*Zero(3, ("optimizer", "param")).overrides(Sharding()))
    assert sharding_of(settings).offloads == ("optimizer", "param")


def test_offloading_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert Zero(2).lacking() is Sharding().lacking() is None
    assert "offload_optimizer, offload_param compiles a kernel" in Zero(3, ("optimizer", "param")).lacking()


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingsError, match="needs torchrun, also for one process"):
        Zero(2).prepare(on_cpu=True)
    with pytest.raises(SettingsError, match="trainer.fsdp needs torchrun, also for one process"):
        Fsdp().prepare(on_cpu=True)
    Sharding().prepare(on_cpu=True)


def test_where_nothing_is_divided_everything_is_whole():
    layer = nn.Linear(2, 3)
    assert not weights_are_divided(layer)
    assert whole_head(layer) is layer
    assert num_elements(layer.weight) == 6
    with whole(list(layer.parameters()), changed=True) as writes:
        assert writes


def test_fsdp_sums_gradients_after_each_pass():
    """Else each process would keep those of the whole model until the last pass of a step."""
    given = {"fsdp": "full_shard", "accelerator_config": {"non_blocking": True}}
    there = Fsdp().completed(given)
    assert there["accelerator_config"] == {
        "non_blocking": True,
        "gradient_accumulation_kwargs": {"sync_each_batch": True},
    }
    assert given["accelerator_config"] == {"non_blocking": True}
