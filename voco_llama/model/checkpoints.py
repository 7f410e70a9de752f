"""Building a model from its parts: an open_clip tower, a language model, a fresh projector."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.layout import Condition, SegmentShape
from voco_llama.model.configuration import VoCoLlamaConfig
from voco_llama.model.vision import VisionTower
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import TokenIds, extend_embeddings

CLIP_CONFIG_FILE = "open_clip_config.json"
CLIP_WEIGHTS_FILE = "open_clip_model.safetensors"


def read_vision_config(name: str) -> dict[str, Any]:
    """The open_clip configuration of a tower.

    Args:
        name: Name of an open_clip model (`ViT-L-14-336-quickgelu`), a JSON file, or a folder that holds
            `open_clip_config.json`.

    Raises:
        SettingsError: There is no such model.
    """
    path = Path(name)
    if path.is_dir():
        path = path / CLIP_CONFIG_FILE
    if path.suffix == ".json":
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise SettingsError(
                f"model.vision.name: {path} cannot be read as an open_clip configuration ({error})"
            ) from error
        return config.get("model_cfg", config)
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise SettingsError(f"model.vision.name: open_clip has no model {name!r}: see open_clip.list_models()")
    return config


def read_vision_weights(name: str, pretrained: str | None) -> dict[str, torch.Tensor]:
    """Weights of the vision transformer (`conv1.weight`, ...), without the text tower.

    Args:
        name: As in `read_vision_config`.
        pretrained: A tag of open_clip (`openai`), a weights file (.safetensors, or .pt read with
            `weights_only=True`), or None for the weights file in the folder `name`.

    Raises:
        CheckpointError: The file cannot be read or holds no vision transformer.
        SettingsError: There are no weights to read.
    """
    if pretrained is None and (Path(name) / CLIP_WEIGHTS_FILE).is_file():
        pretrained = str(Path(name) / CLIP_WEIGHTS_FILE)
    if pretrained is None:
        raise SettingsError(
            f"model.vision.pretrained: no weights are given for {name}: name an open_clip tag or a file"
        )
    if not Path(pretrained).is_file():
        import open_clip

        if pretrained not in open_clip.list_pretrained_tags_by_model(name):
            raise SettingsError(f"model.vision.pretrained: {pretrained!r} is neither a file nor a tag of {name}")
        return open_clip.create_model(name, pretrained=pretrained).visual.state_dict()
    from open_clip.factory import load_state_dict

    try:
        weights = load_state_dict(pretrained, weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{pretrained}: cannot be read as weights ({reason}): give a safetensors file") from error
    visual = {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    if not visual:
        raise CheckpointError(f"{pretrained}: holds no open_clip vision transformer (keys 'visual.*')")
    return visual


def build_model(
    language_model: PreTrainedModel,
    vision_config: dict[str, Any],
    vision_weights: dict[str, torch.Tensor] | None,
    tokens: TokenIds,
    vocab_size: int,
    segment: SegmentShape,
    projector: str = "mlp2x_gelu",
    vision_layer: int = -2,
    condition: Condition = "voco",
    **compression: Any,
) -> VoCoLlama:
    """Join the parts.

    Args:
        language_model: Kept as it is, its embeddings extended for the added tokens.
        vision_config: From `read_vision_config`.
        vision_weights: From `read_vision_weights`; None leaves the tower at random.
        tokens: Ids of the tokenizer, `<image>` and `<voco>` included.
        vocab_size: Length of the tokenizer.
        segment: Shape of a segment; its number of vision tokens must be the tower's.
        projector: `linear` or `mlp2x_gelu`.
        vision_layer: Layer whose patch tokens are used.
        condition: Visibility the model will be trained with.
        **compression: `segment_attention`, `voco_embeddings`, `compressor`, `q_former` of `VoCoLlamaConfig`.

    Raises:
        CheckpointError: The vision weights do not fit the tower.
    """
    extend_embeddings(language_model, tokens, vocab_size)
    config = VoCoLlamaConfig(
        text_config=language_model.config,
        vision_config=vision_config,
        vision_layer=vision_layer,
        projector_type=projector,
        num_voco=segment.num_voco,
        condition=condition,
        image_token_id=tokens.image,
        voco_token_id=tokens.voco,
        segment_prefix_ids=segment.prefix,
        segment_infix_ids=segment.infix,
        attn_implementation=language_model.config._attn_implementation,
        **compression,
    )
    expected = config.segment_shape().num_vision
    if segment.num_vision != expected:
        raise CheckpointError(
            f"the rows have {segment.num_vision} vision tokens an image and the model {expected}: build the processor"
            " for this tower"
        )
    return VoCoLlama(config, language_model, load_vision_tower(config, vision_weights))


def load_vision_tower(config: VoCoLlamaConfig, weights: dict[str, torch.Tensor] | None) -> VisionTower:
    """The tower of a configuration with its weights.

    Raises:
        CheckpointError: Names or shapes do not fit; nothing is loaded then.
    """
    tower = VisionTower(config.vision_config, config.vision_layer)
    if weights is None:
        return tower
    expected = tower.visual.state_dict()
    wrong = sorted(set(expected) ^ set(weights))
    wrong += [name for name in expected if name in weights and expected[name].shape != weights[name].shape]
    if wrong:
        raise CheckpointError(
            f"the vision weights do not fit the tower: {len(wrong)} tensors differ, first {', '.join(wrong[:3])}:"
            " check model.vision.name and model.vision.pretrained"
        )
    tower.visual.load_state_dict(weights)
    return tower
