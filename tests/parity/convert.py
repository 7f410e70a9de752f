"""Weights in the Hugging Face layout, renamed for our model. For tests; importing real checkpoints is not done here."""

import torch
from torch import Tensor

from voco_llama.model.voco_llama import VoCoLlama

Weights = dict[str, Tensor]

LAYER_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def below(weights: Weights, prefix: str) -> Weights:
    """The weights whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def vision_to_open_clip(weights: Weights, layers: int, embed_dim: int) -> Weights:
    """A `CLIPVisionModel` (names from `embeddings.class_embedding` on) as an open_clip vision transformer."""
    width = weights["embeddings.class_embedding"].shape[0]
    converted = {
        "class_embedding": weights["embeddings.class_embedding"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "conv1.weight": weights["embeddings.patch_embedding.weight"],
        "proj": torch.zeros(width, embed_dim),  # of the pooled image feature, which LLaVA does not use
    }
    for theirs, ours in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
        for kind in ("weight", "bias"):
            converted[f"{ours}.{kind}"] = weights[f"{theirs}.{kind}"]
    for layer in range(layers):
        theirs, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            joined = [weights[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            converted[f"{ours}.attn.in_proj_{kind}"] = torch.cat(joined)
            for name, our_name in LAYER_NAMES.items():
                converted[f"{ours}.{our_name}.{kind}"] = weights[f"{theirs}.{name}.{kind}"]
    return converted


def load_parts(model: VoCoLlama, vision: Weights, projector: tuple[Weights, Weights], language: Weights) -> None:
    """Fill a model: the tower (open_clip names), the projector's two layers, the causal language model."""
    model.vision.visual.load_state_dict(vision)
    for place, weights in zip((0, 2), projector, strict=True):
        model.projector[place].load_state_dict(weights)
    model.language_model.load_state_dict(language)
