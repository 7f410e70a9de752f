"""Weights divided over processes: the only file that knows DeepSpeed (or another backend) by name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled


def weights_are_divided() -> bool:
    """Whether models that are built now have their weights divided over the processes (ZeRO-3)."""
    return is_deepspeed_zero3_enabled()


def num_elements(parameter: nn.Parameter) -> int:
    """Of the whole parameter, also where this process holds a piece of it."""
    return getattr(parameter, "ds_numel", parameter.numel())


@contextmanager
def whole(parameters: nn.Parameter | Sequence[nn.Parameter], changed: bool = False) -> Iterator[bool]:
    """Within it, parameters are whole, in every process.

    Args:
        parameters: One or several.
        changed: What the first process writes into them is kept, and given to all others.

    Yields:
        Whether this process is to write: all are if nothing is divided, else the first one.
    """
    if not weights_are_divided():
        yield True
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
        yield torch.distributed.get_rank() == 0
