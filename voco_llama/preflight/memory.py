"""How much memory a training needs on each GPU: a pure function of counts and shapes, no model is built.

The terms of the states are exact counts, and those of whatever divides them (`voco_llama.sharding`). Those of
the activations follow the tensors that autograd keeps in transformers' Llama layers, with SDPA's memory-efficient
kernel. What comes and goes inside a backward pass is counted roughly, from above. Optimizers other than AdamW are not
modelled: they are counted as AdamW.

A step has moments, and its peak is the largest of them:

    tower   the images pass the frozen tower; nothing is kept for a backward pass yet
    head    all layers have run: logits and loss, and their gradients
    layer   the backward pass of one layer, which gradient checkpointing computes again first
    update  activations are gone; what is divided may make float32 gradients of its 16-bit ones
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from voco_llama.model.reconstruction import MLP, decoder_width
from voco_llama.sharding import FLOAT32, HALF, MOMENTS, Group, Sharding, Term, Units

BOOL = 1
"""Bytes of an element."""

CONTEXT_BYTES = int(1.5 * 2**30)
"""CUDA's context, the workspaces of cuBLAS and the buffers of NCCL, about."""


@dataclass(frozen=True)
class Decoder:
    """Shape of the language model; `norms_heads`: queries and keys of each head have a norm of their own (Qwen3)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norms_heads: bool = False

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
        chunk: Tokens whose logits exist at the same time.
        reconstructed: Images that the decoder of the reconstruction tells, each as often as it is read.
    """

    rows: int
    length: int
    images: int
    trained_tokens: int
    element: int = HALF
    attention: str = "sdpa"
    checkpointing: bool = True
    weights_train: bool = True
    chunk: int = 1024
    reconstructed: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that the estimate depends on.

    Attributes:
        processes: GPUs.
        half: Whether training is in bf16 or fp16.
        sharding: How states are divided over the processes.
    """

    groups: tuple[Group, ...]
    decoder: Decoder
    tower: Tower
    work: Pass
    adapters: Adapters | None = None
    processes: int = 1
    half: bool = True
    sharding: Sharding = field(default_factory=Sharding)


def adapter_parameters(decoder: Decoder, rank: int, targets: Sequence[str]) -> int:
    """Parameters of low-rank adapters on all layers."""
    maps = decoder.linear()
    return decoder.layers * sum(rank * sum(maps[name]) for name in targets if name in maps)


def with_rows(plan: Plan, rows: int) -> Plan:
    """The plan with another batch of like rows."""
    work = plan.work
    scaled = {name: getattr(work, name) * rows // work.rows for name in ("images", "trained_tokens", "reconstructed")}
    return replace(plan, work=replace(work, rows=rows, **scaled))


@dataclass(frozen=True)
class Estimate:
    """Terms on a GPU, and what is offloaded to the machine's memory by one process, in bytes."""

    terms: tuple[Term, ...]
    host_bytes: int

    def at(self, moment: str) -> int:
        """Bytes on a GPU at a moment."""
        return sum(term.bytes for term in self.terms if moment in term.moments)

    @property
    def peak(self) -> int:
        """Bytes on a GPU at the worst moment."""
        return max(map(self.at, MOMENTS))

    def of(self, name: str) -> int:
        """Bytes of the term of that name; 0 if there is none."""
        return sum(term.bytes for term in self.terms if term.name == name)


def estimate(plan: Plan) -> Estimate:
    """The memory of a training."""
    decoder = plan.decoder
    bucket = decoder.hidden**2 if any(group.trained for group in plan.groups) else 0
    largest = decoder.hidden * decoder.vocabulary if plan.work.weights_train else 0  # a table of words
    layer = sum(rows * columns for rows, columns in decoder.linear().values()) + 2 * decoder.hidden
    units = Units(bucket, largest, decoder.hidden * decoder.vocabulary, layer)
    terms, host_bytes = plan.sharding.states(plan.groups, plan.processes, plan.half, units)
    terms += _activations(plan)
    terms.append(Term("CUDA context", CONTEXT_BYTES, MOMENTS, "context, cuBLAS, NCCL: about"))
    return Estimate(tuple(term for term in terms if term.bytes), host_bytes)


def _activations(plan: Plan) -> Iterator[Term]:
    work, decoder, tower = plan.work, plan.decoder, plan.tower
    tokens, s = work.rows * work.length, work.element
    patches = work.images * tower.tokens
    yield Term(
        "images", work.images * 3 * tower.image_size**2 * FLOAT32, MOMENTS[:3], "3 x size^2 float32 of each image"
    )
    passing = int(patches * tower.width * s * (2 * tower.mlp_ratio + 6))
    yield Term("tower", passing, ("tower",), "one block at a time, nothing kept: (2 mlp + 6) x width a token")
    inputs = 2 * s * tokens * decoder.hidden + s * patches * (tower.width + 3 * decoder.hidden)
    yield Term("inputs", inputs, ("head", "layer"), "embeddings, projector's features")
    mask = work.rows * work.length**2 * {"sdpa": BOOL, "eager": s}.get(work.attention, 0)
    yield Term("mask", mask, ("head", "layer"), "[rows, 1, length, length]; in two steps there is none")
    one = kept_by_layer(plan)
    if work.checkpointing:
        inputs_of_layers = s * tokens * decoder.hidden * decoder.layers
        yield Term("layers", inputs_of_layers, ("head", "layer"), "checkpoints: hidden x layers a token")
        yield Term("layer again", one, ("layer",), "what one layer keeps (kept_by_layer)")
    else:
        yield Term("layers", one * decoder.layers, ("head", "layer"), "what each layer keeps (kept_by_layer)")
    passing = s * tokens * (3 * decoder.intermediate + 4 * decoder.hidden)
    yield Term("gradients inside", passing, ("layer",), "of 3 MLP-wide and 4 hidden-wide tensors")
    logits = min(work.trained_tokens, work.chunk) * decoder.vocabulary * (s + 3 * FLOAT32)
    yield Term("logits", logits, ("head",), "logits, float32 log-probabilities, the gradients of both")
    told = work.reconstructed * (tower.tokens - 1)
    decoder_size = told * (4 * FLOAT32 * decoder.hidden + (2 * MLP + 8) * s * decoder_width(decoder.hidden))
    yield Term("reconstruction", decoder_size, ("head",), "4 float32 hidden, (2 mlp + 8) x its width a vision token")
    yield Term("final states", 2 * FLOAT32 * tokens * decoder.hidden, ("head",), "last norm, what the head reads")


def kept_by_layer(plan: Plan) -> int:
    """Bytes that autograd keeps of one decoder layer of Llama, its input included.

    A token: two RMS norms keep their input in float32 and a root; attention keeps q, k and v (repeated to all heads),
    and a fused kernel its output and a float32 sum for each head besides; the MLP keeps gate, silu(gate) and up. Where
    the weights train, norms keep what they scale and linear maps what they read. SDPA keeps the mask as a bias of the
    activations' type, eager attention its probabilities in float32 and in that type. Norms of queries and keys keep as
    those of the layer do.
    """
    work, decoder, s = plan.work, plan.decoder, plan.work.element
    h, m, wide = decoder.hidden, decoder.intermediate, decoder.heads * decoder.head_dim
    is_fused = work.attention != "eager"
    token = 2 * (FLOAT32 * h + FLOAT32) + 3 * s * wide + 3 * s * m
    if is_fused:
        token += FLOAT32 * decoder.heads
    if is_fused or work.weights_train:
        token += s * wide
    if decoder.norms_heads:
        heads = decoder.heads + decoder.kv_heads
        token += heads * (FLOAT32 * (decoder.head_dim + 1) + s * decoder.head_dim * work.weights_train)
    probabilities = FLOAT32 if s == FLOAT32 else FLOAT32 + s
    a_pair = {"sdpa": s, "eager": decoder.heads * probabilities}.get(work.attention, 0)
    if work.weights_train:
        token += 4 * s * h + s * m
    elif plan.adapters is not None:
        token += _kept_by_adapters(plan.adapters, decoder, s)
    return work.rows * work.length * (token + work.length * a_pair)


def _kept_by_adapters(adapters: Adapters, decoder: Decoder, element: int) -> int:
    """Bytes a token: what each adapter reads (once where linear maps share it), and what lies between its two maps."""
    shared = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
    sizes, read = 0, {}
    maps = decoder.linear()
    for name in maps.keys() & set(adapters.targets):
        width, _ = maps[name]
        sizes += adapters.rank * adapters.element
        if adapters.dropout or adapters.element != element:  # a copy of its own
            sizes += width * (adapters.element + (BOOL if adapters.dropout else 0))
        elif name != "o_proj":  # attention keeps its output anyway
            read[shared.get(name, name)] = width * element
    return sizes + sum(read.values())
