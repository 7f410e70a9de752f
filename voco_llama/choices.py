"""The values that settings, configurations and arguments may take, each list spelled once."""

import math
from collections.abc import Collection
from typing import Literal, get_args

from voco_llama.errors import SettingsError

Condition = Literal["voco", "full"]
"""`voco`: text reads segments through VoCo tokens only. `full`: plain causal attention (the upper bound)."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

ANSWER_CONDITIONS = ("full", "voco", "blind")
"""How questions are answered; `blind`: there is no image."""

SegmentAttention = Literal["causal", "bidirectional", "independent"]
"""Of what stands before a segment's VoCo tokens, among itself. `causal` is the paper's."""
SEGMENT_ATTENTIONS: tuple[SegmentAttention, ...] = get_args(SegmentAttention)

VOCO_EMBEDDINGS = ("shared", "distinct")
"""One embedding for all VoCo tokens (the paper), or with an offset for each."""

COMPRESSORS = ("language_model", "average_pool", "q_former")
"""What makes the VoCo tokens: the method, or, outside the language model, the paper's baselines."""

PROJECTORS = ("linear", "mlp2x_gelu")
"""The paper's, and LLaVA-1.5's."""

BACKENDS = ("eager", "sdpa", "flex_attention")
"""Attention implementations of transformers that can express the mask."""
ATTENTIONS = (*BACKENDS, "flash_attention_2")
"""Those that can be named; one that cannot express the mask is refused with the reason."""

DTYPES = ("float32", "bfloat16", "float16")

Template = Literal["vicuna_v1", "chat", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

Order = Literal["first", "authors", "llava", "inline"]
"""Where an image stands in its prompt (`voco_llama.data.prompts`)."""
ORDERS: tuple[Order, ...] = get_args(Order)

GROUPINGS = ("none", "length", "modality")
"""What rows of one global batch have in common (`voco_llama.training.sampling`)."""

STAGES = ("clip", "language", "align", "instruct", "voco", "video")
PARTS = ("vision", "projector", "language")
"""What a stage may train."""

TEACHERS = ("none", "checkpoint", "adapters_off", "most_voco", "top_k")
DRAWS = ("row", "batch")
OPTIMIZERS = ("trainer", "muon")
LAYOUTS = ("voco", "llava", "llava_hf")
"""Of checkpoints: ours, LLaVA's own, and llava-hf's on the hub."""
MEDIA_DEPTHS = ("decode", "header", "exists")
"""How `data check` looks at images and clips."""


def check_quality(quality: float | None, condition: str | None) -> None:
    """Refuse a divergence that none can keep within, and one where no VoCo tokens are read (`SettingsError`)."""
    if quality is None:
        return
    if not 0 <= quality < math.inf:
        raise SettingsError(f"quality is {quality}: give a divergence in nats an answer token, 0 or more, as 0.05")
    if condition not in (None, "voco"):
        raise SettingsError(f"quality={quality} is about VoCo tokens: leave it out under condition={condition}")


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        SettingsError: It names them.
    """
    if value not in choices:
        raise SettingsError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
