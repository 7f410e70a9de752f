"""PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`): every layer a unit of its own, gathered while it works."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from voco_llama.errors import SettingsError, did_you_mean, require
from voco_llama.files import read_json
from voco_llama.sharding.base import Sharding

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments

_CONFIG = "trainer.fsdp_config"
KEYS = ("version", "reshard_after_forward")


@dataclass(frozen=True)
class Fsdp(Sharding):
    """FSDP2, with float32 masters where training is in 16 bits.

    Attributes:
        reshards: Whether the weights of a layer are let go after its forward pass and gathered again for its backward.
        options: `fsdp_config`.
    """

    reshards: bool = True
    options: Mapping[str, Any] | None = None

    name: ClassVar[str] = "FSDP"
    cuts_matrices: ClassVar[bool] = True
    cuts_weights: ClassVar[bool] = True
    keeps_masters: ClassVar[bool] = True
    needs_torchrun: ClassVar[bool] = True
    unmodelled: ClassVar[str | None] = "FSDP is not modelled: memory is counted as if each GPU held everything"

    @classmethod
    def of(cls, config: Any) -> "Fsdp":
        """Read `fsdp_config`: a dictionary, the path of a JSON file, or None.

        Raises:
            SettingsError: It cannot be read.
        """
        if isinstance(config, str):
            config = read_json(Path(config), SettingsError, f"{_CONFIG} names a configuration in JSON")
        options = config or {}
        return cls(reshards=bool(options.get("reshard_after_forward", True)), options=options)

    def check(self, random_weights: bool) -> None:
        options = self.options or {}
        for key in options:
            require(key in KEYS, f"unknown setting '{_CONFIG}.{key}'{did_you_mean(key, KEYS)}")
        version = options.get("version")
        require(version == 2, f"{_CONFIG}.version is {version}: FSDP1 is gone; use trainer=fsdp2, which sets 2")

    def prepare(self, on_cpu: bool) -> None:
        require(
            "RANK" in os.environ,
            "trainer.fsdp needs torchrun, also for one process: torchrun --nproc_per_node N -m voco_llama.cli train ...",
        )

    def divide(self, model: nn.Module, arguments: "TrainingArguments") -> None:
        shard(model, arguments, self.reshards)


def shard(model: nn.Module, arguments: "TrainingArguments", reshards: bool) -> None:
    """Leave each process its piece of a model's weights, unit by unit.

    A unit is a module of a class that the model does not let be split (`_no_split_modules`); the rest, with the tables
    of words, is one that stays whole from the forward pass on to the end of the backward pass. What trains is kept in
    float32 if training is in 16 bits, what does not in 16.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    policy = MixedPrecisionPolicy(half, torch.float32) if half is not None else MixedPrecisionPolicy()
    mesh = init_device_mesh(arguments.device.type, (arguments.world_size,))
    units = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    for unit in reversed(units):
        _cast(unit.parameters(), half)
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshards, mp_policy=policy)
    _cast(model.parameters(), half)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)


def _cast(parameters: Iterable[nn.Parameter], half: torch.dtype | None) -> None:
    """Give parameters the type that they are kept in; those that are divided have it."""
    from torch.distributed.tensor import DTensor

    for parameter in parameters:
        if half is not None and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else half)


def use_plugin(accelerator: "Accelerator", arguments: "TrainingArguments") -> bool:
    """Have Accelerate know of a model that is divided already; whether it is.

    On a CPU it would know nothing of FSDP.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if arguments.fsdp_plugin_args is None:
        return False
    state = accelerator.state
    if state.distributed_type is not DistributedType.FSDP:
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    state.fsdp_plugin.auto_wrap_policy = None
    return True
