"""The names that other projects give the same tensors, and back.

    Hugging Face's CLIP     vision_model.encoder.layers.0.self_attn.q_proj.weight (and k, v), ...
    open_clip (ours)        transformer.resblocks.0.attn.in_proj_weight (q, k and v joined), ...

    LLaVA's original        model.layers.*    model.mm_projector.{0,2}.*   model.vision_tower.vision_tower.*
    llava-hf, on the hub    language_model.*  multi_modal_projector.linear_{1,2}.*      vision_tower.*
    llava-hf, newer         model.language_model.*, lm_head.*, model.multi_modal_projector.*, model.vision_tower.*
    ours                    language_model.*  projector.{0,2}.*            vision.visual.*

Below the towers' prefixes stands Hugging Face's CLIP, with or without `vision_model.`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from voco_llama.errors import CheckpointError, refused_as
from voco_llama.model.weights import Weights, below, without_buffers

_CLIP_NAMES = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
"""Parts of names: Hugging Face's, open_clip's."""

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
    projection = weights.pop(_PROJECTION, None)
    converted, joined = {}, {}
    for name, tensor in (below(weights, _VISION_MODEL) or weights).items():
        for theirs, ours in _CLIP_NAMES:
            name = name.replace(theirs, ours)
        if found := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault(f"{found[1]}.attn.in_proj_{found[3]}", {})[found[2]] = tensor
        else:
            converted[name] = tensor  # also an unknown one: the check of names will say so
    for name, parts in joined.items():
        if set(parts) != set("qkv"):
            raise CheckpointError(f"{where}: {name} needs q, k and v and has {', '.join(sorted(parts))}: get it again")
        with refused_as(CheckpointError, f"{where}: {name}", "its q, k and v do not go together; get it again"):
            converted[name] = torch.cat([parts[letter] for letter in "qkv"])
    if (embedding := converted.get("class_embedding")) is None:
        raise CheckpointError(f"{where}: its vision tower has no embeddings.class_embedding: get it again")
    width = embedding.shape[0]
    converted["proj"] = torch.zeros(width, embed_dim) if projection is None else projection.T.contiguous()
    return converted


def open_clip_to_clip(weights: Mapping[str, Tensor]) -> Weights:
    """open_clip's vision transformer as a `CLIPVisionModel`, names from `embeddings.class_embedding` on.

    The projection of the pooled feature has no place there and is left out.
    """
    converted = {}
    for name, tensor in weights.items():
        for theirs, ours in _CLIP_NAMES:
            name = name.replace(ours, theirs)
        stem, is_joined, kind = name.partition("attn.in_proj_")
        if is_joined:
            for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{stem}self_attn.{letter}_proj.{kind}"] = piece.clone()
        elif name != "proj":
            converted[name] = tensor
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


_LLAVA_NAMES = (
    (r"(model\.)?(mm_|multi_modal_)?projector\.", "projector", ""),
    (r"(model\.)?vision_tower\.(vision_tower\.)?", "vision", ""),
    (r"language_model\.model\.|model\.language_model\.", "language", "model."),
    (r"language_model\.(?=lm_head\.)", "language", ""),
    (r"", "language", ""),
)
"""Beginnings of names, the part that has them, and the beginnings there; the first that matches tells."""
_HF_PROJECTOR = {"linear_1": "0", "linear_2": "2"}


def place_in_llava(name: str) -> tuple[str, str]:
    """The part that a tensor of a LLaVA belongs to, in any layout, and its name there."""
    pattern, part, beginning = next(entry for entry in _LLAVA_NAMES if re.match(entry[0], name))
    return part, re.sub(f"^(?:{pattern})", beginning, name)


def split_llava(weights: Mapping[str, Tensor], where: str, replaced: Mapping[str, Tensor] | None = None) -> LlavaParts:
    """The parts of a LLaVA's weights, whichever of its layouts they have, also of a projector alone.

    That is `mm_projector.bin` of LLaVA's alignment, or a stage of ours.

    Args:
        weights: All of them.
        where: What messages call them.
        replaced: Tensors, in any layout, in place of those of `weights`, or besides.

    Raises:
        CheckpointError: There is no projector.
    """
    parts: dict[str, Weights] = {"language": {}, "projector": {}, "vision": {}}
    for name, tensor in chain(without_buffers(weights).items(), without_buffers(replaced or {}).items()):
        part, name = place_in_llava(name)
        parts[part][name] = tensor
    if not parts["projector"]:
        raise CheckpointError(
            f"{where}: holds no projector (model.mm_projector.* or multi_modal_projector.*), so it is no LLaVA: give a"
            " language model as model.language.pretrained"
        )
    for theirs, ours in _HF_PROJECTOR.items():
        parts["projector"] = {name.replace(theirs, ours): t for name, t in parts["projector"].items()}
    return LlavaParts(**parts)


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
