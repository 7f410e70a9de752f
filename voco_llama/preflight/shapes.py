"""The model of a training on the meta device, and a pass through it: shapes without weights, network or GPU.

The language model's shape comes from the checkpoint that the training starts from, else from the folder or the hub's
cache, else from the published shapes that ship in `configs/model_shapes`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import CONFIG_NAME

from voco_llama.config_files import CONFIG_DIR
from voco_llama.configuration import Heads, VoCoLlamaConfig
from voco_llama.errors import CheckpointError, SettingsError, one_line
from voco_llama.hub import is_hub_name
from voco_llama.layout import SegmentMark, TextSpan, lay_out
from voco_llama.model.losses import Objective
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.preflight.memory import Decoder, Tower
from voco_llama.settings import TrainSettings
from voco_llama.tokens import IGNORE_INDEX, add_special_tokens, check_tokenizer, check_vocabulary
from voco_llama.training.build import compression_config, fit_reconstruction
from voco_llama.training.given import SHAPES_DIR
from voco_llama.training.inputs import language_hint
from voco_llama.training.lora import add_adapters, trained_by
from voco_llama.training.stages import ModuleCount, set_trainable
from voco_llama.visibility import TokenFacts
from voco_llama.vision_config import MLP_RATIO, read_vision_config

ADDED_TOKENS = 2
"""`<image>` and `<voco>`."""


@dataclass(frozen=True)
class MetaModel:
    """A model on the meta device with types and `requires_grad` as in training, what trains, what had to be assumed."""

    model: VoCoLlama
    table: list[ModuleCount]
    notes: tuple[str, ...]

    @property
    def decoder(self) -> Decoder:
        """Shape of the language model."""
        text = self.model.language_model.config
        layers, heads = text.num_hidden_layers, Heads.of(text)
        norms_heads = any(name.endswith("q_norm.weight") for name, _ in self.model.decoder.named_parameters())
        return Decoder(text.hidden_size, text.intermediate_size, layers, *heads, text.vocab_size, norms_heads)

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
        model = VoCoLlama(config)
        fit_reconstruction(model, settings.loss)
        model.to(getattr(torch, settings.model.dtype))
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
    key = "model.language.config" if language.pretrained is None else "model.language.pretrained"
    shape = SHAPES_DIR / f"{name}.json"
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if not shape.is_file():
            in_world = Path(name).is_relative_to(settings.paths.toyworld)
            if not Path(name).exists() and (in_world or ("/" in name and not is_hub_name(name))):
                hint = "; make the toy world first: voco-llama toyworld" if in_world else language_hint(name)
                raise SettingsError(f"{key}: {name} does not exist (from {Path.cwd()}){hint}") from error
            raise SettingsError(
                f"model.language: the shape of {name} is not known here ({one_line(error)}): if it is a folder, make it"
                f" first; if a name of the hub, fetch its config.json, as in: hf download {name} config.json"
            ) from error
    notes.append(f"{name} is not here: its published shape ({shape.relative_to(CONFIG_DIR.parent)})")
    return AutoConfig.from_pretrained(shape, trust_remote_code=False)


def _vocabulary(settings: TrainSettings, num_rows: int, notes: list[str]) -> int:
    """Rows of the embeddings with the added tokens."""
    name: Any = settings.model.tokenizer or settings.model.language.pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        notes.append(f"the tokenizer {name} is not here: {ADDED_TOKENS} tokens more than the language model has")
        return num_rows + ADDED_TOKENS
    check_tokenizer(tokenizer)
    check_vocabulary(tokenizer, num_rows, "model.tokenizer and model.language")
    add_special_tokens(tokenizer)
    return max(num_rows, len(tokenizer))


def walk(model: VoCoLlama, rows: int, segments: int, text: int, chunk_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a training pass whose text is all trained, by name, in the order in which they come up.

    `VoCoLlama.forward` itself counts image tokens and picks trained ones, which takes contents; so its parts are called
    here in its order, with the counts taken from a row laid out on the CPU: its segments and tokens of text. Logits
    exist of `chunk_size` tokens at the same time.
    """
    config, objective = model.config, Objective(chunk_size=chunk_size)
    text_id = 0
    spans = [*[SegmentMark()] * segments, TextSpan((text_id,) * text, (True,) * text)]
    row = lay_out(spans, config.added_tokens, config.segment_shape(), config.condition)
    batch = row.repeated(rows)
    trained = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    meta = {name: values.to("meta") for name, values in batch.items()}
    with torch.no_grad():
        shapes, embeddings = _embed(model, meta["input_ids"], rows * segments)
        facts = TokenFacts.of_batch(meta)
        mask = model.mask(facts, facts, config.condition, embeddings.dtype)
        hidden_states = model.decoder(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=facts.position, use_cache=False
        ).last_hidden_state
        kept = hidden_states.flatten(0, 1)[:trained]
        targets = meta["labels"].flatten()[:trained]
        shapes |= {"mask": mask.shape, "hidden states": hidden_states.shape, "trained tokens": kept.shape}
        head = model.get_output_embeddings()
        logits = head(kept[:chunk_size])
        shapes |= {"logits of a chunk": logits.shape, "loss": objective(head, kept, targets, trained).total.shape}
    return {name: tuple(shape) for name, shape in shapes.items()}


def _embed(model: VoCoLlama, input_ids: Tensor, images: int) -> tuple[dict[str, torch.Size], Tensor]:
    """Shapes of what images become, and the embeddings of the row with them."""
    embeddings = model.get_input_embeddings()(input_ids)
    shapes = {"token ids": input_ids.shape}
    if images:
        size = model.config.image_size
        pixel_values = torch.empty(images, 3, size, size, device="meta", dtype=embeddings.dtype)
        features = model.vision(pixel_values)
        shapes |= {"images": pixel_values.shape, "patch features": features.shape}
        if model.compressor is not None:
            features = model.compressor(features)
            shapes["compressed"] = features.shape
        features = model.projector(features).to(embeddings.dtype)
        shapes["projected"] = features.shape
        outside = model.config.compresses_outside
        places = input_ids == (model.config.voco_token_id if outside else model.config.image_token_id)
        embeddings = embeddings.masked_scatter(places[..., None], features)
    return shapes | {"embeddings": embeddings.shape}, embeddings
