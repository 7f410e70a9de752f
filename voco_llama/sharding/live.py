"""Parameters of a training that runs, however they are divided."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from voco_llama.sharding.fsdp import shard

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments


def weights_are_divided(model: nn.Module) -> bool:
    """Whether each process holds a piece of every weight of a model: by ZeRO-3, or by FSDP."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule) or hasattr(next(model.parameters(), None), "ds_id")


def _builds_divided() -> bool:
    """Whether models that are built now have their weights divided (ZeRO-3)."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def num_elements(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where this process holds a piece of it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def held(parameter: nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: all of it, or its piece."""
    piece = getattr(parameter, "ds_tensor", parameter).detach()
    return piece.to_local() if isinstance(piece, DTensor) else piece


@contextmanager
def whole(parameters: nn.Parameter | Sequence[nn.Parameter], changed: bool = False) -> Iterator[bool]:
    """Within it, parameters are whole in every process; what the first writes is kept everywhere if they are `changed`.

    Yields:
        Whether this process is to write: all are if nothing is divided, else the first one.
    """
    if not _builds_divided():
        yield True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
        yield torch.distributed.get_rank() == 0


def whole_head(head: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a placed model's head computes, also outside of its pass and in the midst of a backward pass.

    FSDP has it whole from the first pass on; of what ZeRO-3 divides, each process gets a copy.
    """
    parameters = dict(head.named_parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        return head
    with whole(list(parameters.values())):
        copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return partial(linear, **copies)


def place_frozen(model: nn.Module, accelerator: "Accelerator", arguments: "TrainingArguments") -> nn.Module:
    """Bring a model that only reads to where another one trains: divided as that one is, else onto the device."""
    if arguments.fsdp:
        shard(model, arguments)
        return model
    if not _builds_divided():
        return model.to(arguments.device)
    import deepspeed

    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    config = {
        "train_micro_batch_size_per_gpu": arguments.per_device_train_batch_size,
        "zero_optimization": {k: v for k, v in zero.items() if v != "auto" and k != "offload_optimizer"},
        "bf16": {"enabled": arguments.bf16},
        "fp16": {"enabled": arguments.fp16},
    }
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # which returns nothing
    return engine
