"""How much memory a training needs on each GPU: a pure function of counts, no model is built.

The terms of the states are exact counts (ZeRO: arXiv 1910.02054, section 3; DeepSpeed's own estimators agree). Those of
the activations follow the tensors that autograd keeps in transformers' Llama layers, with SDPA's memory-efficient
kernel. What comes and goes inside a backward pass is counted roughly, from above. FSDP and optimizers other than AdamW
are not modelled: they are counted as DDP and AdamW.

A step has moments, and its peak is the largest of them:

    tower   the images pass the frozen tower; nothing is kept for a backward pass yet
    head    all layers have run: logits and loss, and their gradients
    layer   the backward pass of one layer, which gradient checkpointing computes again first
    update  activations are gone; DeepSpeed makes float32 gradients of its 16-bit ones
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voco_llama.preflight.memory_plan import BOOL, FLOAT32, HALF, MAX_LIVE, Adapters, Decoder, Group, Placement, Plan

MOMENTS = ("tower", "head", "layer", "update")

CONTEXT_BYTES = int(1.5 * 2**30)
"""CUDA's context, the workspaces of cuBLAS and the buffers of NCCL, about."""


@dataclass(frozen=True)
class Term:
    """One line of the estimate: bytes on each GPU, at which moments, and how they were counted."""

    name: str
    bytes: int
    moments: tuple[str, ...]
    formula: str


@dataclass(frozen=True)
class Estimate:
    """Terms on a GPU, and what is offloaded to the machine's memory by one process, in bytes."""

    terms: tuple[Term, ...]
    host_bytes: int

    def at(self, moment: str) -> int:
        """Bytes on a GPU at a moment."""
        return sum(term.bytes for term in self.terms if moment in term.moments)

    @property
    def peak_moment(self) -> str:
        """Where the peak is."""
        return max(MOMENTS, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes on a GPU at the worst moment."""
        return self.at(self.peak_moment)

    def of(self, name: str) -> int:
        """Bytes of the term of that name; 0 if there is none."""
        return sum(term.bytes for term in self.terms if term.name == name)


def estimate(plan: Plan) -> Estimate:
    """The memory of a training."""
    terms, host_bytes = _states(plan)
    terms += list(_activations(plan))
    terms.append(Term("CUDA context", CONTEXT_BYTES, MOMENTS, "context, cuBLAS, NCCL: about"))
    return Estimate(tuple(term for term in terms if term.bytes), host_bytes)


def _states(plan: Plan) -> tuple[list[Term], int]:
    """Weights, gradients, optimizer: terms, and bytes in the machine's memory."""
    place, groups = plan.placement, plan.groups
    return _zero_states(plan) if place.zero else (_plain_states(groups, place), 0)


def _plain_states(groups: Sequence[Group], place: Placement) -> list[Term]:
    """PyTorch alone: gradients and AdamW's two moments are of the type of the weight; there are no masters."""
    weights = sum((group.trained + group.frozen) * group.element for group in groups)
    gradients = sum(group.trained * group.element for group in groups)
    single = sum(group.trained for group in groups if group.element == FLOAT32)
    terms = [
        Term("weights", weights, MOMENTS, "as loaded"),
        Term("gradients", gradients, MOMENTS, "trained, of the weight's type"),
        Term("optimizer", 2 * gradients, MOMENTS, "AdamW: 2 moments of the weight's type"),
    ]
    if place.processes > 1:
        terms.append(Term("buckets", gradients, MOMENTS, "DDP: gradients once more, to be summed"))
    if place.half and single:
        moments = ("head", "layer")
        terms.append(Term("autocast copies", HALF * single, moments, "2 x trained float32 weights"))
    return terms


def _zero_states(plan: Plan) -> tuple[list[Term], int]:
    """DeepSpeed's: 16-bit weights and gradients, and of what trains float32 masters and moments, divided."""
    place, n = plan.placement, plan.placement.processes
    element = HALF if place.half else FLOAT32
    trained = sum(group.trained for group in plan.groups)
    everything = trained + sum(group.frozen for group in plan.groups)
    cut_weights, cut_gradients = (n if place.zero == 3 else 1), (n if place.zero >= 2 else 1)
    weights, gradients = element * everything // cut_weights, element * trained // cut_gradients
    optimizer = 3 * FLOAT32 * trained // n
    update = FLOAT32 * trained // n if place.zero < 3 else min(FLOAT32 * trained // n, FLOAT32 * MAX_LIVE)
    host = 0
    if place.offload_optimizer:
        host, optimizer, update, gradients = host + optimizer + update + gradients, 0, 0, 0
    if place.offload_parameters and place.zero == 3:
        host, weights = host + weights, 0
    # Both `auto` in our settings; largest weight: a table of words.
    bucket = plan.decoder.hidden**2 if trained else 0
    largest = plan.decoder.hidden * plan.decoder.vocabulary if plan.work.weights_train else 0
    terms = [
        Term("weights", weights, MOMENTS, f"{element} x all / {cut_weights}"),
        Term("gradients", gradients, MOMENTS, f"{element} x trained / {cut_gradients}"),
        Term("optimizer", optimizer, MOMENTS, f"(4 master + 8 AdamW) x trained / {n}"),
        Term("float32 gradients", update, ("update",), f"4 x trained / {n}, while DeepSpeed updates"),
        Term(
            "buckets", element * (2 * bucket + largest), ("layer",), "2 of hidden^2, and the largest weight's gradient"
        ),
    ]
    if place.zero == 3:
        live = element * min(place.max_live, everything)
        terms.append(Term("gathered weights", live, ("tower", "head", "layer"), "stage3_max_live_parameters at most"))
    return terms, host


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
    mask = work.rows * work.length**2 * {"sdpa": BOOL, "eager": s, "flex_attention": 0}[work.attention]
    yield Term("mask", mask, ("head", "layer"), "[rows, 1, length, length]")
    one = kept_by_layer(plan)
    if work.checkpointing:
        inputs_of_layers = s * tokens * decoder.hidden * decoder.layers
        yield Term("layers", inputs_of_layers, ("head", "layer"), "checkpoints: hidden x layers a token")
        yield Term("layer again", one, ("layer",), "what one layer keeps (kept_by_layer)")
    else:
        yield Term("layers", one * decoder.layers, ("head", "layer"), "what each layer keeps (kept_by_layer)")
    passing = s * tokens * (3 * decoder.intermediate + 4 * decoder.hidden)
    yield Term("gradients inside", passing, ("layer",), "of 3 MLP-wide and 4 hidden-wide tensors")
    logits = min(work.trained_tokens, work.chunk or work.trained_tokens) * decoder.vocabulary * (s + 3 * FLOAT32)
    yield Term("logits", logits, ("head",), "logits, float32 log-probabilities, the gradients of both")
    yield Term("final states", 2 * FLOAT32 * tokens * decoder.hidden, ("head",), "last norm, what the head reads")


def kept_by_layer(plan: Plan) -> int:
    """Bytes that autograd keeps of one decoder layer of Llama, its input included.

    A token: two RMS norms keep their input in float32 and a root; attention keeps q, k and v (repeated to all heads),
    and a fused kernel its output and a float32 sum for each head besides; the MLP keeps gate, silu(gate) and up. Where
    the weights train, norms keep what they scale and linear maps what they read. SDPA keeps the mask as a bias of the
    activations' type, eager attention its probabilities in float32 and in that type.
    """
    work, decoder, s = plan.work, plan.decoder, plan.work.element
    h, m, wide = decoder.hidden, decoder.intermediate, decoder.heads * decoder.head_dim
    is_fused = work.attention != "eager"
    token = 2 * (FLOAT32 * h + FLOAT32) + 3 * s * wide + 3 * s * m
    if is_fused:
        token += FLOAT32 * decoder.heads
    if is_fused or work.weights_train:
        token += s * wide
    probabilities = FLOAT32 if s == FLOAT32 else FLOAT32 + s
    a_pair = {"sdpa": s, "flex_attention": 0, "eager": decoder.heads * probabilities}[work.attention]
    if work.weights_train:
        token += 4 * s * h + s * m
    elif plan.adapters is not None:
        token += _kept_by_adapters(plan.adapters, decoder, s)
    return work.rows * work.length * (token + work.length * a_pair)


def _kept_by_adapters(adapters: Adapters, decoder: Decoder, element: int) -> int:
    """Bytes a token: what each adapter reads (once where linear maps share it), and what lies between its two maps."""
    shared = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
    sizes, read = 0, {}
    for name in adapters.targets:
        if name not in decoder.linear():
            continue
        width, _ = decoder.linear()[name]
        sizes += adapters.rank * adapters.element
        if adapters.dropout or adapters.element != element:  # a copy of its own
            sizes += width * (adapters.element + (BOOL if adapters.dropout else 0))
        elif name != "o_proj":  # attention keeps its output anyway
            read[shared.get(name, name)] = width * element
    return sizes + sum(read.values())
