"""PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`): every layer a unit of its own, gathered while it works."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from voco_llama.errors import SettingsError, did_you_mean, require
from voco_llama.files import read_json
from voco_llama.sharding.base import FLOAT32, HALF, MOMENTS, Group, Sharding, Term, Units

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, TrainingArguments

_CONFIG = "trainer.fsdp_config"
KEYS = ("version", "reshard_after_forward")
_INSTEAD = {
    "cpu_offload": "use trainer=zero3_offload",
    "activation_checkpointing": "set trainer.gradient_checkpointing, which knows of passes in two steps",
}


@dataclass(frozen=True)
class Fsdp(Sharding):
    """FSDP2. What trains is kept in float32; what is gathered to work, in 16 bits if training is.

    Attributes:
        reshards: Whether the weights of a layer are let go after its forward pass and gathered again for its backward.
        options: `fsdp_config`, and `fsdp`.
    """

    reshards: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "FSDP"
    cuts_matrices: ClassVar[bool] = True
    cuts_weights: ClassVar[bool] = True
    keeps_masters: ClassVar[bool] = True
    needs_torchrun: ClassVar[bool] = True
    casts: ClassVar[bool] = True

    @classmethod
    def of(cls, fsdp: Any, config: Any) -> "Fsdp":
        """Read `fsdp`, and `fsdp_config`: a dictionary, the path of a JSON file, or None.

        Raises:
            SettingsError: It cannot be read.
        """
        if isinstance(config, str):
            config = read_json(Path(config), SettingsError, f"{_CONFIG} names a configuration in JSON")
        require(config is None or isinstance(config, Mapping), f"{_CONFIG} is {config}: give {{key: value}}")
        options = {"fsdp": fsdp, **(config or {})}
        return cls(reshards=options.get("reshard_after_forward") is not False, options=options)

    def check(self, random_weights: bool) -> None:
        options = dict(self.options)
        fsdp, version = options.pop("fsdp"), options.get("version")
        require(version == 2, f"{_CONFIG}.version is {version}, and FSDP1 is not supported: use trainer=fsdp2")
        require(fsdp == "full_shard", f"trainer.fsdp is {fsdp}: give full_shard; {_CONFIG} has what can be chosen")
        for key, value in options.items():
            text = f"{_CONFIG}.{key} is not supported: "
            require(key not in _INSTEAD, text + _INSTEAD.get(key, ""))
            require(key in KEYS, f"unknown setting '{_CONFIG}.{key}'{did_you_mean(key, KEYS)}")
            require(key == "version" or isinstance(value, bool), f"{_CONFIG}.{key} is {value}: give true or false")
        require(
            not random_weights,
            "model.language.config (random weights) with FSDP would be drawn whole in each process: use trainer=zero2,"
            " or start from a checkpoint",
        )

    def prepare(self, on_cpu: bool) -> None:
        require(
            "RANK" in os.environ,
            "trainer.fsdp needs torchrun, also for one process: torchrun --nproc_per_node N -m voco_llama.cli train"
            " ...",
        )
        # It warns of gradient_checkpointing, which gathers nothing twice where layers are the units.
        logging.getLogger("transformers.training_args").addFilter(lambda record: "AllGather" not in record.getMessage())

    def completed(self, trainer: dict[str, Any]) -> dict[str, Any]:
        """Gradients are summed after each pass: those of a whole model would be kept else until the last one."""
        accelerator = {**(trainer.get("accelerator_config") or {})}
        accelerator["gradient_accumulation_kwargs"] = {"sync_each_batch": True}
        return {**trainer, "fsdp": True, "accelerator_config": accelerator}

    def states(self, groups: Sequence[Group], processes: int, half: bool, units: Units) -> tuple[list[Term], int]:
        """Float32 of what trains, its gradients and moments, divided; gathered in the type of the pass."""
        element, n = HALF if half else FLOAT32, processes
        trained = sum(group.trained for group in groups)
        kept = sum(FLOAT32 * group.trained + group.element * group.frozen for group in groups)
        ours = [group for group in groups if group.is_saved]
        heads = 1 if len(ours) == len(groups) else 2  # a teacher has its own
        tail = heads * units.table + sum(group.all for group in ours if group.part == "projector")
        summed = units.largest + sum(group.trained for group in ours if group.part == "projector")
        layer_trains = units.layer if units.largest else 0
        passing = MOMENTS[:3]
        terms = [
            Term("weights", kept // n, MOMENTS, f"(4 x trained, frozen as loaded) / {n}"),
            Term("gradients", FLOAT32 * trained // n, MOMENTS, f"4 x trained / {n}"),
            Term("optimizer", 2 * FLOAT32 * trained // n, MOMENTS, f"8 AdamW x trained / {n}"),
            Term("gathered weights", element * 3 * units.layer, passing, "2 layers, and one on its way"),
            Term("head and projector", element * tail, passing, "whole, from the first pass of a step to its end"),
            Term("their gradients", element * summed, ("head", "layer"), "whole, summed at the end"),
            Term("buckets", (element + FLOAT32) * layer_trains, ("layer",), "a layer's gradients, and in float32"),
            Term("last bucket", (2 * element + FLOAT32) * summed, ("update",), "head and projector are summed last"),
        ]
        return terms, 0

    def exchanged(self, groups: Sequence[Group], half: bool, passes: int) -> int:
        """Weights are gathered for each pass in its type, and gradients summed after it in float32."""
        element = HALF if half else FLOAT32
        gathered = sum((group.gathers if self.reshards else 1) * group.all for group in groups)
        return passes * (element * gathered + FLOAT32 * sum(group.trained for group in groups))

    def saved(self, groups: Sequence[Group], half: bool) -> tuple[int, int]:
        """The weights as loaded, and 12 bytes of each trained parameter: in float32, and two moments."""
        final = sum(group.all * group.element for group in groups)
        return final, final + 3 * FLOAT32 * sum(group.trained for group in groups)

    def divide(self, model: "PreTrainedModel", arguments: "TrainingArguments", dtype: torch.dtype) -> None:
        shard(model, arguments, dtype, self.reshards)


def shard(
    model: "PreTrainedModel",
    arguments: "TrainingArguments",
    dtype: torch.dtype | None = None,
    reshards: bool = True,
) -> None:
    """Leave each process its piece of a model's weights, unit by unit; no process has held more than a unit before.

    A unit is a module of a class that the model does not let be split (`_no_split_modules`), or the embeddings. All
    else is one more, with the head, which the losses call chunk by chunk: once whole, it stays so to the end of the
    backward pass, and where there is none, for good.

    Args:
        model: On the CPU, its weights mapped from disk or in memory.
        arguments: Its processes and device, and the type that it computes in.
        dtype: Of weights that do not train, and of all that are saved; what trains is kept in float32. None: what it
            computes in.
        reshards: Whether units let their weights go after the forward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    computes_in = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=computes_in, reduce_dtype=torch.float32)
    mesh = init_device_mesh(arguments.device.type, (arguments.world_size,))
    units = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings.weight is not head.weight:
        units.append(embeddings)
    dtype = dtype or computes_in
    for unit in reversed(units):  # what is inside comes first
        _cast(unit.parameters(), dtype)
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshards, mp_policy=policy)
    _cast(model.parameters(), dtype)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    model.config.dtype = dtype


def _cast(parameters: Iterable[nn.Parameter], frozen: torch.dtype) -> None:
    """Give parameters the type that they are kept in; those that are divided have it."""
    from torch.distributed.tensor import DTensor

    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)


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
