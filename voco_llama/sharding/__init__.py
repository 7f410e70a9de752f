"""How a training's weights, gradients and optimizer are divided over its processes: all that knows DeepSpeed or FSDP.

`sharding_of` reads it off the settings, and what it returns answers for the rest: which settings it refuses, what it
needs before a training begins, what its states weigh. Another backend is another subclass of `Sharding`, in a file of
its own here.
"""

from collections.abc import Mapping
from typing import Any

from voco_llama.sharding.base import FLOAT32, HALF, MOMENTS, Group, Sharding, Term, Units
from voco_llama.sharding.fsdp import Fsdp, use_plugin
from voco_llama.sharding.live import num_elements, place_frozen, weights_are_divided, whole, whole_head
from voco_llama.sharding.zero import OFFLOAD, Zero, expect_no_accelerator, installation

__all__ = [
    "FLOAT32",
    "HALF",
    "MOMENTS",
    "OFFLOAD",
    "Fsdp",
    "Group",
    "Sharding",
    "Term",
    "Units",
    "Zero",
    "expect_no_accelerator",
    "installation",
    "num_elements",
    "place_frozen",
    "sharding_of",
    "undivided",
    "use_plugin",
    "weights_are_divided",
    "whole",
    "whole_head",
]


def sharding_of(trainer: Mapping[str, Any]) -> Sharding:
    """What the keys of `TrainingArguments` choose.

    Raises:
        SettingsError: They name a configuration that cannot be read.
    """
    if trainer.get("deepspeed") is not None:
        return Zero.of(trainer["deepspeed"])
    return Fsdp.of(trainer["fsdp"], trainer.get("fsdp_config")) if trainer.get("fsdp") else Sharding()


def undivided(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys of `TrainingArguments` for one process."""
    return {**trainer, "deepspeed": None, "fsdp": None, "fsdp_config": None}
