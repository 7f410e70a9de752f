"""The model of a training on the meta device: shapes without weights, network or GPU.

The language model's shape comes from the checkpoint that the training starts from, else from the folder or the hub's
cache, else from the published shapes that ship in `configs/model_shapes`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from voco_llama.composition import CONFIG_DIR
from voco_llama.configuration import Heads, VoCoLlamaConfig
from voco_llama.errors import CheckpointError, SettingsError, one_line
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.preflight.memory import Decoder, Tower
from voco_llama.settings import TrainSettings
from voco_llama.tokens import add_special_tokens
from voco_llama.training.build import compression_config
from voco_llama.training.lora import add_adapters, trained_by
from voco_llama.training.stages import ModuleCount, set_trainable
from voco_llama.vision_config import MLP_RATIO, read_vision_config

SHAPES_DIR = CONFIG_DIR / "model_shapes"
ADDED_TOKENS = 2
"""`<image>` and `<voco>`."""


@dataclass(frozen=True)
class MetaModel:
    """A model without weights.

    Attributes:
        model: On the meta device, of the types of its weights, `requires_grad` as in training.
        table: What trains.
        notes: What had to be assumed.
    """

    model: VoCoLlama
    table: list[ModuleCount]
    notes: tuple[str, ...]

    @property
    def decoder(self) -> Decoder:
        """Shape of the language model."""
        text = self.model.language_model.config
        layers, heads = text.num_hidden_layers, Heads.of(text)
        return Decoder(text.hidden_size, text.intermediate_size, layers, *heads, text.vocab_size)

    @property
    def tower(self) -> Tower:
        """Shape of the vision tower."""
        config = self.model.config
        ratio = config.vision_config["vision_cfg"].get("mlp_ratio", MLP_RATIO)
        return Tower(self.model.vision.width, config.num_vision_tokens + 1, config.image_size, ratio)


def meta_model(settings: TrainSettings) -> MetaModel:
    """The model that a training would build.

    Raises:
        SettingsError: The shape of a part cannot be known without a download.
        CheckpointError: A checkpoint that is here is none of ours.
    """
    notes: list[str] = []
    config = _configuration(settings, notes)
    for name, value in compression_config(settings.compression).items():
        setattr(config, name, value)
    config.num_voco, config.condition = settings.compression.num_voco, settings.compression.condition
    # The mask is walked as sdpa's: the other backends have no kernels on the meta device, and the same shapes.
    config.text_config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = VoCoLlama(config).to(getattr(torch, settings.model.dtype))
        adapters = add_adapters(model, settings.model.lora) if settings.model.lora.rank else None
    table = set_trainable(model, settings.stage.trains, trained_by(adapters))
    return MetaModel(model.train(), table, tuple(notes))


def _configuration(settings: TrainSettings, notes: list[str]) -> VoCoLlamaConfig:
    model = settings.model
    if model.checkpoint is not None and (Path(model.checkpoint) / CONFIG_NAME).is_file():
        try:
            return VoCoLlamaConfig.from_pretrained(model.checkpoint)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model.checkpoint: {model.checkpoint} ({one_line(error)})") from error
    if model.checkpoint is not None:
        notes.append(f"{model.checkpoint} is not here: shapes of the parts that model.* names")
    text = _text_config(settings, notes)
    text.vocab_size = _vocabulary(settings, text.vocab_size, notes)
    return VoCoLlamaConfig(
        text_config=text,
        vision_config=read_vision_config(model.vision.name),
        vision_layer=model.vision.layer,
        projector_type=model.projector,
        image_token_id=text.vocab_size - ADDED_TOKENS,
        voco_token_id=text.vocab_size - 1,
    )


def _text_config(settings: TrainSettings, notes: list[str]) -> PreTrainedConfig:
    language = settings.model.language
    name = language.pretrained or language.config
    if name is None:
        raise SettingsError(
            "the model's shape is not known: model.checkpoint is not here, and no model.language is named: choose a"
            " model=... group"
        )
    shape = SHAPES_DIR / f"{name}.json"
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        if not shape.is_file():
            raise SettingsError(
                f"model.language: the shape of {name} is not known here ({one_line(error)}): fetch its config.json,"
                f" as in: hf download {name} config.json"
            ) from error
    notes.append(f"{name} is not here: its published shape ({shape.relative_to(CONFIG_DIR.parent)})")
    return AutoConfig.from_pretrained(shape)


def _vocabulary(settings: TrainSettings, num_rows: int, notes: list[str]) -> int:
    """Rows of the embeddings with the added tokens."""
    name: Any = settings.model.tokenizer or settings.model.language.pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        notes.append(f"the tokenizer {name} is not here: {ADDED_TOKENS} tokens more than the language model has")
        return num_rows + ADDED_TOKENS
    add_special_tokens(tokenizer)
    return max(num_rows, len(tokenizer))
