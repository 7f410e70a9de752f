"""`voco-llama export`: a checkpoint of any layout written in another one.

LLaVA's own layout and llava-hf's, which transformers reads, hold the weights and nothing of the VoCo mask: read there,
the model sees images in full. `config.json` gets an entry of ours beside, from which `VoCoLlama.from_llava` knows
condition, number of VoCo tokens and how prompts are written again.
"""

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.files import writing, written_aside
from voco_llama.llava_folder import CONFIG_FILE, EXPORT_KEY, KNOWN_TOWERS, LANGUAGE_TYPES, is_llava
from voco_llama.model.layouts import LlavaParts, join_llava, open_clip_to_clip
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.settings import ExportSettings
from voco_llama.tokens import IMAGE_TOKEN
from voco_llama.vision_config import read_vision_config, to_clip_config

logger = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"
"""Below an export in LLaVA's own layout: a tower that has no name on the hub."""


def export(settings: ExportSettings) -> Path:
    """Read a checkpoint and write it in another layout, with the processor's files, whole or not at all.

    Returns:
        The folder written.

    Raises:
        CheckpointError: The checkpoint cannot be read, or the layout has no place for a part of it.
        SettingsError: The output is in use, or a setting is for LLaVA's folders alone.
    """
    output = Path(settings.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise SettingsError(f"output: {output} is in use: name a new or empty folder")
    if is_llava(settings.checkpoint):
        options = {"vision_tower": settings.vision_tower, "num_voco": settings.num_voco}
        processor = VoCoProcessor.from_llava(settings.checkpoint, **options)
        model = VoCoLlama.from_llava(settings.checkpoint, **options, dtype=settings.dtype)
    else:
        for key in ("vision_tower", "num_voco"):
            if getattr(settings, key) is not None:
                raise SettingsError(f"{key} is for the folder of a LLaVA, and {settings.checkpoint} is none: remove it")
        processor = VoCoProcessor.from_pretrained(settings.checkpoint)
        model = VoCoLlama.from_pretrained(settings.checkpoint, dtype=settings.dtype)
    if settings.layout != "voco":
        _check(model, settings.layout)
    with writing(output, "make room, or name another output"), written_aside(output) as folder:
        folder.mkdir()
        if settings.layout == "voco":
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        else:
            write = _write_hub_layout if settings.layout == "llava_hf" else _write_own_layout
            write(model, processor, folder)
    logger.info("written: %s", output)
    return output


_OURS_ALONE = "only layout=voco holds such a model"


def _check(model: VoCoLlama, layout: str) -> None:
    """Refuse a model of which the layout has no place for a part."""
    config = model.config
    lacks = f"layout {layout} has no place for"
    if config.compressor != "language_model":
        raise CheckpointError(f"{lacks} a compressor outside the language model ({config.compressor}): {_OURS_ALONE}")
    if config.voco_embeddings != "shared":
        raise CheckpointError(f"{lacks} VoCo tokens of {config.voco_embeddings} embeddings: {_OURS_ALONE}")
    if config.segment_attention != "causal":
        raise CheckpointError(f"{lacks} segment_attention {config.segment_attention}: {_OURS_ALONE}")
    if layout == "llava_hf" and config.projector_type != "mlp2x_gelu":
        raise CheckpointError(f"{lacks} a {config.projector_type} projector: use layout=llava")
    kind = config.text_config.model_type
    if layout == "llava" and kind not in LANGUAGE_TYPES.values():
        raise CheckpointError(f"{lacks} a language model of type {kind}: use layout=llava_hf")


def _parts(model: VoCoLlama) -> LlavaParts:
    """The model's weights; tied ones are left out once."""
    language = model.language_model.state_dict()
    if model.language_model.config.tie_word_embeddings:
        for name in model.language_model._tied_weights_keys or ():
            language.pop(name, None)
    return LlavaParts(language, model.projector.state_dict(), open_clip_to_clip(model.vision.visual.state_dict()))


def _text_config(model: VoCoLlama) -> dict[str, Any]:
    """The language model's, with all that ends an answer: where others generate, nothing else says what was taught."""
    return model.language_model.config.to_dict() | {"eos_token_id": model.config.eos_token_id}


def _trained_as(model: VoCoLlama, processor: VoCoProcessor) -> dict[str, Any]:
    config = model.config
    return {EXPORT_KEY: {"condition": config.condition, "num_voco": config.num_voco, **asdict(processor.style)}}


def _write_hub_layout(model: VoCoLlama, processor: VoCoProcessor, folder: Path) -> None:
    """By transformers itself, so that the names on disk are those of its version.

    Its processor pads images to a square as LLaVA does; its prompts are the caller's to write.
    """
    config = LlavaConfig(
        text_config=_text_config(model),
        vision_config=CLIPVisionConfig(**to_clip_config(model.config.vision_config)).to_dict(),
        image_token_id=model.config.image_token_id,
        image_seq_length=model.config.num_vision_tokens,
        vision_feature_layer=model.config.vision_layer,
        vision_feature_select_strategy="default",
        **_trained_as(model, processor),
    )
    weights = join_llava(_parts(model), "llava_hf")
    theirs = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=model.dtype)
    theirs.generation_config = model.language_model.generation_config
    theirs.save_pretrained(folder)
    transform = processor.image_transform
    image_processor = LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": transform.image_size},
        crop_size={"height": transform.image_size, "width": transform.image_size},
        image_mean=list(transform.mean),
        image_std=list(transform.std),
    )
    LlavaProcessor(
        image_processor=image_processor,
        tokenizer=processor.tokenizer,
        patch_size=transform.image_size // math.isqrt(processor.num_vision),
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def _write_own_layout(model: VoCoLlama, processor: VoCoProcessor, folder: Path) -> None:
    """For LLaVA's own code."""
    config, parts = model.config, _parts(model)
    text = _text_config(model)
    kind = {language: llava for llava, language in LANGUAGE_TYPES.items()}[text["model_type"]]
    clip = to_clip_config(config.vision_config)
    shapes = {name: to_clip_config(read_vision_config(tower)) for name, (tower, _) in KNOWN_TOWERS.items()}
    tower = next((name for name, shape in shapes.items() if shape == clip), TOWER_FOLDER)
    described = text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": kind,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": clip["hidden_size"],
        "mm_projector_type": config.projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.vision_layer,
        "mm_vision_tower": tower,
        "use_mm_proj": True,
        **_trained_as(model, processor),
    }
    if tower == TOWER_FOLDER:
        CLIPVisionConfig(**clip).save_pretrained(folder / TOWER_FOLDER)
        named = {f"vision_model.{name}": tensor.contiguous() for name, tensor in parts.vision.items()}
        save_file(named, folder / TOWER_FOLDER / "model.safetensors", metadata={"format": "pt"})
    save_torch_state_dict(join_llava(parts, "llava"), folder)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    processor.tokenizer.save_pretrained(folder)
