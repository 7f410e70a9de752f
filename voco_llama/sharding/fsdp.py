"""PyTorch's FSDP."""

from dataclasses import dataclass
from typing import ClassVar

from voco_llama.sharding.base import Sharding


@dataclass(frozen=True)
class Fsdp(Sharding):
    """PyTorch's FSDP, as transformers runs it."""

    name: ClassVar[str] = "FSDP"
    cuts_matrices: ClassVar[bool] = True
    cuts_weights: ClassVar[bool] = True
    unmodelled: ClassVar[str | None] = "FSDP is not modelled: memory is counted as if each GPU held everything"
