"""What the memory estimate depends on: counts and shapes, no model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

FLOAT32, HALF, BOOL = 4, 2, 1
"""Bytes of an element."""

MAX_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`, and its `sub_group_size`, in parameters."""


@dataclass(frozen=True)
class Group:
    """Parameters of one part and one element size, in elements.

    Attributes:
        element: Bytes of one as loaded.
    """

    part: str
    trained: int
    frozen: int
    element: int


@dataclass(frozen=True)
class Placement:
    """How states are divided.

    Attributes:
        processes: GPUs.
        zero: Level of ZeRO; 0: no DeepSpeed (DDP, with one process plain PyTorch).
        half: Whether training is in bf16 or fp16: under DeepSpeed all weights then are, beside float32 masters.
        offload_optimizer: Gradients, masters and moments lie in the machine's memory.
        offload_parameters: With ZeRO-3 the 16-bit weights do too.
        max_live: Parameters that ZeRO-3 gathers at the same time.
    """

    processes: int = 1
    zero: int = 0
    half: bool = True
    offload_optimizer: bool = False
    offload_parameters: bool = False
    max_live: int = MAX_LIVE


@dataclass(frozen=True)
class Decoder:
    """Shape of the language model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each of a layer's linear maps."""
        h, m, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, m),
            "up_proj": (h, m),
            "down_proj": (m, h),
        }


@dataclass(frozen=True)
class Tower:
    """Shape of the vision tower; `tokens` are its own, of one image, the class token included."""

    width: int
    tokens: int
    image_size: int
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters; `element` bytes of their weights."""

    rank: int
    dropout: float
    targets: tuple[str, ...]
    element: int


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a process.

    Attributes:
        rows: Of the batch.
        length: Tokens of each row.
        images: Of all rows.
        trained_tokens: Of all rows: the head runs for these.
        element: Bytes of an activation.
        attention: `sdpa`, `eager` or `flex_attention`.
        checkpointing: Only the inputs of layers are kept, and each layer runs again in the backward pass.
        weights_train: Whether the language model's own weights do.
        chunk: Tokens whose logits exist at the same time; None: all of them.
    """

    rows: int
    length: int
    images: int
    trained_tokens: int
    element: int = HALF
    attention: str = "sdpa"
    checkpointing: bool = True
    weights_train: bool = True
    chunk: int | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that the estimate depends on."""

    groups: tuple[Group, ...]
    placement: Placement
    decoder: Decoder
    tower: Tower
    work: Pass
    adapters: Adapters | None = None


def adapter_parameters(decoder: Decoder, rank: int, targets: Sequence[str]) -> int:
    """Parameters of low-rank adapters on all layers."""
    maps = decoder.linear()
    return decoder.layers * sum(rank * sum(maps[name]) for name in targets if name in maps)


def with_rows(plan: Plan, rows: int) -> Plan:
    """The plan with another batch of like rows."""
    work = plan.work
    scaled = {name: getattr(work, name) * rows // work.rows for name in ("images", "trained_tokens")}
    return replace(plan, work=replace(work, rows=rows, **scaled))
