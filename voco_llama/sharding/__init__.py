"""How a training's weights, gradients and optimizer are divided over its processes.

`sharding_of` reads it off the settings; what it returns answers for the rest (`base.Sharding`): which settings it
refuses, what it needs before a training begins, what its states weigh. Another backend is a file beside `zero`.
"""

from collections.abc import Mapping
from typing import Any

from voco_llama.sharding.base import FLOAT32, HALF, MOMENTS, Fsdp, Group, Sharding, Term
from voco_llama.sharding.zero import (
    MAX_LIVE,
    Zero,
    expect_no_accelerator,
    installation,
    num_elements,
    place_frozen,
    weights_are_divided,
    whole,
)

__all__ = [
    "FLOAT32",
    "HALF",
    "MAX_LIVE",
    "MOMENTS",
    "Group",
    "Sharding",
    "Term",
    "Zero",
    "expect_no_accelerator",
    "installation",
    "num_elements",
    "place_frozen",
    "sharding_of",
    "undivided",
    "weights_are_divided",
    "whole",
]


def sharding_of(trainer: Mapping[str, Any]) -> Sharding:
    """What the keys of `TrainingArguments` choose.

    Raises:
        SettingsError: They name a configuration that cannot be read.
    """
    if trainer.get("deepspeed") is not None:
        return Zero.of(trainer["deepspeed"])
    return Fsdp() if trainer.get("fsdp") else Sharding()


def undivided(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys of `TrainingArguments` for one process."""
    return {**trainer, "deepspeed": None}
