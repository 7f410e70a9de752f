"""A model of ours in the files of LLaVA: its own layout, or llava-hf's, which transformers reads.

Both hold the weights and nothing of the VoCo mask: read there, the model sees images in full. `config.json` gets an
entry of ours beside, from which `VoCoLlama.from_llava` knows condition, number of VoCo tokens and order again.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from voco_llama.errors import CheckpointError
from voco_llama.llava_folder import CONFIG_FILE, EXPORT_KEY, KNOWN_TOWERS, LANGUAGE_TYPES
from voco_llama.model.layouts import LlavaParts, join_llava, open_clip_to_clip
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.vision_config import read_vision_config, to_clip_config

TOWER_FOLDER = "vision_tower"
"""Below an export in LLaVA's own layout: a tower that has no name on the hub."""


def export_llava(model: VoCoLlama, folder: Path, layout: str, order: str) -> None:
    """Write configuration and weights; the tokenizer is the processor's to write.

    Args:
        model: To be written, in its own dtype.
        folder: An empty one.
        layout: `llava` or `llava_hf`.
        order: Where an image stands in the model's prompts.

    Raises:
        CheckpointError: The layout has no place for a part of the model.
    """
    _check(model, layout)
    config = model.config
    parts = LlavaParts(
        _language_weights(model), model.projector.state_dict(), open_clip_to_clip(model.vision.visual.state_dict())
    )
    ours = {EXPORT_KEY: {"condition": config.condition, "num_voco": config.num_voco, "order": order}}
    if layout == "llava_hf":
        _write_hub_layout(model, parts, folder, ours)
    else:
        _write_own_layout(model, parts, folder, ours)


def _check(model: VoCoLlama, layout: str) -> None:
    config = model.config
    lacks = f"layout {layout} has no place for"
    if config.compressor != "language_model" or config.voco_embeddings != "shared":
        raise CheckpointError(
            f"{lacks} a {config.compressor} compressor and {config.voco_embeddings} embeddings: no way"
        )
    if config.segment_attention != "causal":
        raise CheckpointError(
            f"{lacks} segment_attention {config.segment_attention}: the model would compute otherwise"
        )
    if layout == "llava_hf" and config.projector_type != "mlp2x_gelu":
        raise CheckpointError(f"{lacks} a {config.projector_type} projector: use layout=llava")
    kind = config.text_config.model_type
    if layout == "llava" and kind not in LANGUAGE_TYPES.values():
        raise CheckpointError(f"{lacks} a language model of type {kind}: use layout=llava_hf")


def _language_weights(model: VoCoLlama) -> dict[str, Any]:
    """The language model's weights; tied ones are left out once."""
    weights = model.language_model.state_dict()
    if model.language_model.config.tie_word_embeddings:
        for name in model.language_model._tied_weights_keys or ():
            weights.pop(name, None)
    return weights


def _write_hub_layout(model: VoCoLlama, parts: LlavaParts, folder: Path, ours: dict[str, Any]) -> None:
    """By transformers itself, so that the names on disk are those of its version."""
    config = LlavaConfig(
        text_config=model.language_model.config.to_dict(),
        vision_config=CLIPVisionConfig(**to_clip_config(model.config.vision_config)).to_dict(),
        image_token_id=model.config.image_token_id,
        image_seq_length=model.config.num_vision_tokens,
        vision_feature_layer=model.config.vision_layer,
        vision_feature_select_strategy="default",
        **ours,
    )
    weights = join_llava(parts, "llava_hf")
    theirs = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype)
    theirs.generation_config = model.language_model.generation_config
    theirs.save_pretrained(folder)


def _write_own_layout(model: VoCoLlama, parts: LlavaParts, folder: Path, ours: dict[str, Any]) -> None:
    config = model.config
    text = model.language_model.config.to_dict()
    kind = {language: llava for llava, language in LANGUAGE_TYPES.items()}[text["model_type"]]
    clip = CLIPVisionConfig(**to_clip_config(config.vision_config))
    described = text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": kind,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": clip.hidden_size,
        "mm_projector_type": config.projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_layer,
        "mm_vision_tower": _known_tower(config.vision_config) or TOWER_FOLDER,
        "use_mm_proj": True,
        **ours,
    }
    if described["mm_vision_tower"] == TOWER_FOLDER:
        (folder / TOWER_FOLDER).mkdir()
        clip.save_pretrained(folder / TOWER_FOLDER)
        named = {f"vision_model.{name}": tensor.contiguous() for name, tensor in parts.vision.items()}
        save_file(named, folder / TOWER_FOLDER / "model.safetensors", metadata={"format": "pt"})
    save_torch_state_dict(join_llava(parts, "llava"), folder)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _known_tower(vision_config: dict[str, Any]) -> str | None:
    """The name on the hub of a tower of this very shape, as far as one is known."""
    for name, (architecture, _) in KNOWN_TOWERS.items():
        if to_clip_config(read_vision_config(architecture)) == to_clip_config(vision_config):
            return name
    return None
