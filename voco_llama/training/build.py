"""From settings to the things that train: data set, processor, model."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from voco_llama.configuration import VoCoLlamaConfig, entries_of_rows
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.media.roots import open_media_root
from voco_llama.data.mixture import Mixture
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.prompts import PromptStyle
from voco_llama.data.readers import Reader, open_reader
from voco_llama.errors import CheckpointError, SettingsError, VoCoError, one_line, refused_as, require
from voco_llama.model.language import build_language_model
from voco_llama.model.layouts import split_llava
from voco_llama.model.vision_weights import read_vision_weights
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.model.weights import read_weights
from voco_llama.settings import (
    CompressionSettings,
    DataSettings,
    LossSettings,
    ModelSettings,
    SourceSettings,
    TrainSettings,
)
from voco_llama.sharding import sharding_of
from voco_llama.tokens import add_special_tokens, check_as_stored, check_same_tokens, check_tokenizer, check_vocabulary
from voco_llama.training.loss_checks import has_term
from voco_llama.vision_config import num_patches, read_normalization, read_vision_config

logger = logging.getLogger(__name__)


def open_mixture(settings: TrainSettings, bad_records_folder: Path | None = None) -> Mixture:
    """Open every source, without decoding anything.

    Raises:
        DataError: A file is missing, unreadable or empty.
        SettingsError: A source's settings do not fit its format.
    """
    sources = settings.data.sources
    return Mixture(
        [_open_source(source, settings.data) for source in sources],
        weights=[source.weight for source in sources],
        limits=[source.limit for source in sources],
        seed=settings.seed,
        shuffle=not settings.data.streaming,  # the order then is the sampler's alone
        skip_bad_records=settings.data.skip_bad_records,
        bad_records_folder=bad_records_folder,
    )


def _open_source(source: SourceSettings, data: DataSettings) -> Reader:
    media, index = source.media_folder, None if data.index_folder is None else Path(data.index_folder)
    if source.archives:
        media = open_media_root(media, Path(source.file), index, source.archives)
    shuffle_buffer = data.shuffle_buffer if data.streaming else None
    return open_reader(source.format, source.file, media, index, shuffle_buffer, **source.options)


def build_processor(settings: TrainSettings) -> VoCoProcessor:
    """The processor that goes with the model: that of `model.checkpoint`, or a new one; no weights are loaded.

    Prompt, number of VoCo tokens and condition are the settings' either way.

    Raises:
        CheckpointError: A processor or a tokenizer cannot be loaded.
    """
    model = settings.model
    if model.checkpoint is not None:
        try:
            processor = VoCoProcessor.from_pretrained(model.checkpoint)
        except CheckpointError as error:
            parts = "" if Path(model.checkpoint).exists() else ", or set model.checkpoint=null to build one of parts"
            raise CheckpointError(f"model.checkpoint: {error}{parts}") from error
        try:
            vision_config = VoCoLlamaConfig.from_pretrained(model.checkpoint).vision_config
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model.checkpoint: {model.checkpoint} ({one_line(error)})") from error
    else:
        vision_config = read_vision_config(model.vision.name)
        tokenizer = _tokenizer_of(model)
        add_special_tokens(tokenizer)
        colors = read_normalization(model.vision.name, model.vision.pretrained) or ()
        processor = VoCoProcessor(tokenizer, ImageTransform(vision_config["vision_cfg"]["image_size"], *colors))
    prompt, compression = settings.prompt, settings.compression
    if prompt.chat_template is not None:
        processor.tokenizer.chat_template = read_chat_template(prompt.chat_template)
    built = replace(
        processor,
        style=PromptStyle(template=prompt.template, order=prompt.order, system=prompt.system),
        num_vision=num_patches(vision_config) if compression.compressor == "language_model" else 0,
        num_voco=compression.num_voco,
        condition=compression.condition,
        max_length=settings.data.max_length,
        num_frames=settings.data.num_frames,
    )
    built.check_style()
    if prompt.template == "vicuna_v1" and processor.tokenizer.chat_template is not None:
        logger.warning(
            "the tokenizer has a chat template, and prompt.template=vicuna_v1 does not write it: for an instruct model"
            " choose prompt=chat"
        )
    return built


def build_or_load(settings: TrainSettings) -> tuple[VoCoLlama, VoCoProcessor]:
    """The model and its processor: those of `model.checkpoint`, or new ones of the parts that `model` names.

    Raises:
        CheckpointError: Weights or a tokenizer cannot be loaded or do not fit.
    """
    processor = build_processor(settings)
    model = _build(settings, processor) if settings.model.checkpoint is None else _load(settings, processor)
    fit_reconstruction(model, settings.loss)
    dtype = _dtype_as_built(settings)
    return model if dtype == "auto" else model.to(dtype), processor


def fit_reconstruction(model: VoCoLlama, loss: LossSettings) -> None:
    """Let the model have a decoder if the loss has a reconstruction; one that it has, of a checkpoint, is kept.

    Raises:
        SettingsError: The language model has too few layers.
    """
    if not has_term(loss, "reconstruction"):
        model.remove_reconstruction()
        return
    if model.reconstruction is None:
        model.add_reconstruction()
    layer, layers = loss.reconstruction_layer, model.config.text_config.num_hidden_layers
    require(
        layer is None or 1 <= layer < layers,
        f"loss.reconstruction_layer is {layer}, and the language model has {layers} layers: give 1 to {layers - 1}, or"
        " null for all of them",
    )
    model.reconstruction.layer = layer


def _build(settings: TrainSettings, processor: VoCoProcessor) -> VoCoLlama:
    """Of the parts that `model` names."""
    model, dtype = settings.model, _dtype_as_built(settings)
    try:
        language_model = build_language_model(model.language.pretrained, model.language.config, model.attention, dtype)
    except VoCoError:
        raise
    except Exception as error:  # of a damaged or another configuration, of any type
        name = model.language.pretrained or model.language.config
        raise CheckpointError(f"model.language: {name} cannot be loaded ({one_line(error)})") from error
    check_vocabulary(
        processor.tokenizer, language_model.get_input_embeddings().num_embeddings, "model.tokenizer and model.language"
    )
    vision_weights = projector = None
    if model.vision.name.endswith(".json"):
        logger.warning("%s is a configuration alone: the vision tower has random weights", model.vision.name)
    else:
        vision_weights = read_vision_weights(model.vision.name, model.vision.pretrained)
    if (path := model.projector_weights) is not None:
        projector = split_llava(read_weights(path), f"model.projector_weights: {path}").projector
    built = VoCoLlama.from_parts(
        language_model,
        read_vision_config(model.vision.name),
        vision_weights,
        processor.tokens,
        len(processor.tokenizer),
        processor.segment_shape(),
        projector=model.projector,
        vision_layer=model.vision.layer,
        condition=settings.compression.condition,
        projector_weights=projector,
        **compression_config(settings.compression),
    )
    built.end_answers_at(*processor.ends)
    return built


def _tokenizer_of(model: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model of parts, whose tokens are the language model's."""
    own = model.language.pretrained
    tokenizer = load_tokenizer(model.tokenizer or own)
    if model.tokenizer is not None and own is not None:
        check_same_tokens(tokenizer, own, f"model.tokenizer: {model.tokenizer}")
    return tokenizer


def read_chat_template(path: str) -> str:
    """A Jinja template.

    Raises:
        SettingsError: The file cannot be read.
    """
    with refused_as(SettingsError, f"prompt.chat_template: {path}", "name a file with a Jinja template"):
        return Path(path).read_text(encoding="utf-8")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or the hub.

    Raises:
        CheckpointError: There is none.
        SettingsError: It is a slow one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of a damaged file, of any type
        raise CheckpointError(f"model.tokenizer: {name} cannot be loaded ({one_line(error)})") from error
    check_tokenizer(tokenizer)
    check_as_stored(tokenizer, name)
    return tokenizer


def _load(settings: TrainSettings, processor: VoCoProcessor) -> VoCoLlama:
    folder, dtype = settings.model.checkpoint, _dtype_as_built(settings)
    model = VoCoLlama.from_pretrained(folder, dtype=dtype, attn_implementation=settings.model.attention)
    rows = entries_of_rows(processor.segment_shape(), processor.tokens, processor.condition)
    _set_compression(model, compression_config(settings.compression) | rows, folder)
    model.end_answers_at(*processor.ends)
    return model


def _dtype_as_built(settings: TrainSettings) -> torch.dtype | str:
    """`auto`, as stored, where the weights are cast when they are divided: until then they stay mapped from disk."""
    return "auto" if sharding_of(settings.trainer).casts else getattr(torch, settings.model.dtype)


def compression_config(compression: CompressionSettings) -> dict[str, Any]:
    """The entries of the model's configuration that say how it compresses."""
    copied = {name: getattr(compression, name) for name in ("segment_attention", "voco_embeddings", "compressor")}
    return copied | {"q_former": asdict(compression.q_former) if compression.compressor == "q_former" else None}


def _set_compression(model: VoCoLlama, wanted: dict[str, Any], folder: str) -> None:
    """Have the model compress as its new configuration says; its own parts for that are kept if they still fit."""
    had_parts = model.compressor is not None or model.voco_offsets is not None
    changed = [name for name, value in wanted.items() if getattr(model.config, name) != value]
    for name in changed:
        setattr(model.config, name, wanted[name])
    needs_parts = wanted["compressor"] != "language_model" or wanted["voco_embeddings"] == "distinct"
    changed_parts = [name for name in changed if name in ("compressor", "q_former", "voco_embeddings", "num_voco")]
    if changed_parts and (had_parts or needs_parts):
        logger.info("%s has another %s: what compresses starts anew", folder, ", ".join(changed_parts))
        model.add_compression()
