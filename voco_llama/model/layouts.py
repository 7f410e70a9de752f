"""The names that other projects give the same tensors, and back.

    Hugging Face's CLIP     vision_model.encoder.layers.0.self_attn.q_proj.weight (and k, v), ...
    open_clip (ours)        transformer.resblocks.0.attn.in_proj_weight (q, k and v joined), ...

    LLaVA's original        model.layers.*    model.mm_projector.{0,2}.*   model.vision_tower.vision_tower.*
    llava-hf, on the hub    language_model.*  multi_modal_projector.linear_{1,2}.*      vision_tower.*
    llava-hf, newer         model.language_model.*, lm_head.*, model.multi_modal_projector.*, model.vision_tower.*
    ours                    language_model.*  projector.{0,2}.*            vision.visual.*

Below the towers' prefixes stands Hugging Face's CLIP, with or without `vision_model.`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from voco_llama.errors import CheckpointError
from voco_llama.model.weights import Weights, below, without_buffers

_OUTER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_THEIR_LAYER, _OUR_LAYER = "encoder.layers.", "transformer.resblocks."
_VISION_MODEL, _PROJECTION = "vision_model.", "visual_projection.weight"


# ---- CLIP


def is_clip(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are a CLIP, or a CLIP's vision tower, in Hugging Face's layout."""
    return any(name.removeprefix(_VISION_MODEL) == "embeddings.class_embedding" for name in weights)


def clip_to_open_clip(weights: Mapping[str, Tensor], embed_dim: int, where: str) -> Weights:
    """The vision tower of Hugging Face's CLIP as open_clip's vision transformer.

    Args:
        weights: Of a `CLIPVisionModel` or a whole `CLIPModel`.
        embed_dim: Width of the pooled feature, whose projection LLaVA does not use: zeros where it is missing.
        where: What messages call the weights.

    Raises:
        CheckpointError: A layer lacks one of its parts.
    """
    weights = without_buffers(weights)
    tower = below(weights, _VISION_MODEL) or {name: tensor for name, tensor in weights.items() if name != _PROJECTION}
    converted = {_OUTER[name]: tensor for name, tensor in tower.items() if name in _OUTER}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tower.items():
        if name in _OUTER:
            continue
        layer, _, rest = name.removeprefix(_THEIR_LAYER).partition(".")
        part, _, kind = rest.rpartition(".")
        if part in _INNER:
            converted[f"{_OUR_LAYER}{layer}.{_INNER[part]}.{kind}"] = tensor
        elif part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            joined.setdefault(f"{_OUR_LAYER}{layer}.attn.in_proj_{kind}", {})[part[-len("q_proj")]] = tensor
        else:
            converted[name] = tensor  # unknown: the check of names will say so
    for name, parts in joined.items():
        if set(parts) != set("qkv"):
            raise CheckpointError(f"{where}: {name} needs q, k and v and has {', '.join(sorted(parts))}: get it again")
        converted[name] = torch.cat([parts[letter] for letter in "qkv"])
    width = tower["embeddings.class_embedding"].shape[0]
    projection = weights.get(_PROJECTION)
    converted["proj"] = torch.zeros(width, embed_dim) if projection is None else projection.T.contiguous()
    return converted


def open_clip_to_clip(weights: Mapping[str, Tensor]) -> Weights:
    """open_clip's vision transformer as a `CLIPVisionModel`, names from `embeddings.class_embedding` on.

    The projection of the pooled feature has no place there and is left out.
    """
    outer, inner = ({ours: theirs for theirs, ours in names.items()} for names in (_OUTER, _INNER))
    converted = {}
    for name, tensor in weights.items():
        if name in outer:
            converted[outer[name]] = tensor
        elif name.startswith(_OUR_LAYER):
            layer, _, rest = name.removeprefix(_OUR_LAYER).partition(".")
            part, _, kind = rest.rpartition(".")
            if part in inner:
                converted[f"{_THEIR_LAYER}{layer}.{inner[part]}.{kind}"] = tensor
            else:
                kind = kind.removeprefix("in_proj_")
                for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                    converted[f"{_THEIR_LAYER}{layer}.self_attn.{letter}_proj.{kind}"] = piece.clone()
    return converted


# ---- LLaVA


@dataclass(frozen=True)
class LlavaParts:
    """The weights of a LLaVA, part by part.

    Attributes:
        language: Names of the causal language model (`model.layers.*`, `lm_head.*`).
        projector: Names of ours (`0.weight`, ..., or `weight` of a linear one).
        vision: Names of Hugging Face's CLIP; empty if the checkpoint leaves the tower out.
    """

    language: Weights
    projector: Weights
    vision: Weights


_HF_PROJECTOR = {"linear_1": "0", "linear_2": "2"}


def split_llava(weights: Mapping[str, Tensor], where: str) -> LlavaParts:
    """The parts of a LLaVA's weights, whichever of its layouts they have.

    Raises:
        CheckpointError: There is no projector.
    """
    weights = without_buffers(weights)
    if below(weights, "model.mm_projector."):
        vision = below(weights, "model.vision_tower.vision_tower.")
        others = ("model.mm_projector.", "model.vision_tower.")
        language = {name: tensor for name, tensor in weights.items() if not name.startswith(others)}
        return LlavaParts(language, below(weights, "model.mm_projector."), vision)
    for outer, body in (("", "language_model.model."), ("model.", "model.language_model.")):
        theirs = below(weights, f"{outer}multi_modal_projector.")
        if not theirs:
            continue
        projector = {}
        for name, tensor in theirs.items():
            place, _, kind = name.partition(".")
            projector[f"{_HF_PROJECTOR.get(place, place)}.{kind}"] = tensor
        language = {f"model.{name}": tensor for name, tensor in below(weights, body).items()}
        head = below(weights, "language_model.lm_head.") or below(weights, "lm_head.")
        language |= {f"lm_head.{name}": tensor for name, tensor in head.items()}
        known = (f"{outer}multi_modal_projector.", f"{outer}vision_tower.", body, "language_model.lm_head.", "lm_head.")
        language |= {name: tensor for name, tensor in weights.items() if not name.startswith(known)}
        return LlavaParts(language, projector, below(weights, f"{outer}vision_tower."))
    raise CheckpointError(
        f"{where}: holds no projector (model.mm_projector.* or multi_modal_projector.*), so it is no LLaVA: give a"
        " language model as model.language.pretrained"
    )


def join_llava(parts: LlavaParts, layout: str) -> Weights:
    """The parts under the names of a layout, `llava` or `llava_hf` (as on the hub); `split_llava` backwards."""
    if layout == "llava":
        tower, projector = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
        language, places = "", {}
    else:
        tower, projector = "vision_tower.vision_model.", "multi_modal_projector."
        language, places = "language_model.", {ours: theirs for theirs, ours in _HF_PROJECTOR.items()}
    joined = {f"{language}{name}": tensor for name, tensor in parts.language.items()}
    for name, tensor in parts.projector.items():
        place, dot, kind = name.partition(".")
        joined[f"{projector}{places.get(place, place)}{dot}{kind}"] = tensor
    return joined | {f"{tower}{name}": tensor for name, tensor in parts.vision.items()}


def projector_weights(weights: Mapping[str, Tensor], where: str) -> Weights:
    """A projector alone (`mm_projector.bin` of LLaVA's alignment, or a whole checkpoint) under our names.

    Raises:
        CheckpointError: There is none.
    """
    for prefix in ("model.mm_projector.", "mm_projector.", "projector."):
        if found := below(weights, prefix):
            return found
    return split_llava(weights, where).projector
