"""Weights of the vision tower, from open_clip's names, its files, or Hugging Face's CLIP; they must fit the tower.

open_clip's `ViT-L-14-336` computes GELU and OpenAI's weights were trained with quick-GELU. Both have the same names and
shapes, so a wrong pair would only show as bad results. Wherever the activation of weights is known, it is compared.
"""

import logging
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.errors import CheckpointError, SettingsError, refused_as
from voco_llama.files import read_json
from voco_llama.model.layouts import clip_to_open_clip, is_clip
from voco_llama.model.parts import VisionTower
from voco_llama.model.weights import Weights, below, check_fit, guess_layout, read_weights, weights_file
from voco_llama.vision_config import CLIP_CONFIG_FILE, OPEN_CLIP_CONFIG_FILE, config_in_file, is_tag, read_vision_config

logger = logging.getLogger(__name__)

OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Entries that the files published by OpenAI hold beside the weights."""


def read_vision_weights(name: str, pretrained: str | None) -> Weights:
    """Weights of the vision transformer under open_clip's names (`conv1.weight`, ...), without the text tower.

    Args:
        name: As in `read_vision_config`.
        pretrained: A tag of open_clip (`openai`); a weights file (.safetensors, .bin or .pt) or a folder, in the
            layout of open_clip or of Hugging Face; or None for the weights in the folder `name`.

    Raises:
        CheckpointError: The file cannot be read, holds no vision transformer, or one of another activation.
        SettingsError: There are no weights to read.
    """
    if pretrained is None and Path(name).is_dir() and weights_file(Path(name)):
        pretrained = name
    if pretrained is None:
        raise SettingsError(
            f"model.vision.pretrained: no weights are given for {name}: name an open_clip tag, a file or a folder"
        )
    config = read_vision_config(name)
    if not Path(pretrained).exists() or is_tag(name, pretrained):
        return _read_tag(name, pretrained, config)
    path = Path(pretrained)
    known = _activation_beside(path)
    if _is_torchscript(path):  # OpenAI's own files
        weights, known = _read_torchscript(path), True
    else:
        weights = read_weights(path)
    if any(extra in weights for extra in OPENAI_EXTRAS):
        known = True
    _check_activation(known, config, name, pretrained)
    if is_clip(weights):
        return clip_to_open_clip(weights, config["embed_dim"], pretrained)
    visual = below(weights, "visual.")
    if not visual:
        guess = guess_layout(weights)
        raise CheckpointError(
            f"{pretrained}: holds no open_clip vision transformer (keys 'visual.*') and no CLIP of Hugging Face (keys"
            f" 'vision_model.*'){f'; the names look like {guess}' if guess else ''}: give the tower's weights"
        )
    return visual


def load_vision_tower(config: VoCoLlamaConfig, weights: Weights | None) -> VisionTower:
    """The tower of a configuration with its weights.

    Raises:
        CheckpointError: Names or shapes do not fit.
    """
    with refused_as(CheckpointError, "the vision tower's configuration", "check model.vision.name, or get it again"):
        tower = VisionTower(config.vision_config, config.vision_layer)
    if weights is not None:
        advice = "check model.vision.name and model.vision.pretrained"
        check_fit(tower.visual.state_dict(), weights, "the vision weights", advice)
        tower.visual.load_state_dict(weights)
    return tower


def _read_tag(name: str, tag: str, config: dict[str, Any]) -> Weights:
    import open_clip

    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise SettingsError(
            f"model.vision.pretrained: {tag!r} is neither a file nor a tag of {name}: its tags are"
            f" {', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'none'}"
        )
    known = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    _check_activation(known, config, name, tag)
    logger.info("open_clip reads %s of %s: from its cache, or the hub (which fails in a minute offline)", tag, name)
    with refused_as(
        CheckpointError, f"model.vision.pretrained: {tag} of {name} in open_clip", "give a local file or folder"
    ):
        return open_clip.create_model(name, pretrained=tag).visual.state_dict()


def _activation_beside(path: Path) -> bool | None:
    """Whether weights are quick-GELU's, by the configuration beside them; None if there is none."""
    folder = path if path.is_dir() else path.parent
    for file in (folder / OPEN_CLIP_CONFIG_FILE, folder / CLIP_CONFIG_FILE):
        if file.is_file():
            try:
                return config_in_file(read_json(file, SettingsError), str(file)).get("quick_gelu", False)
            except SettingsError:
                continue  # of something else
    return None


def _check_activation(known: bool | None, config: dict[str, Any], name: str, pretrained: str) -> None:
    names = {True: "quick-GELU", False: "GELU"}
    wanted = bool(config.get("quick_gelu", False))
    if known is None:
        logger.warning("%s does not say what its activation is: %s computes %s", pretrained, name, names[wanted])
    elif known != wanted:
        quick = name.removesuffix("-quickgelu")
        raise CheckpointError(
            f"model.vision: the weights {pretrained} were trained with {names[known]} and {name} computes"
            f" {names[wanted]}: choose {quick}{'-quickgelu' if known else ''}, or a configuration with quick_gelu"
            f" {str(known).lower()}"
        )


def _is_torchscript(path: Path) -> bool:
    if not path.is_file() or not is_zipfile(path):
        return False
    with refused_as(CheckpointError, path, "get it again"), ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _read_torchscript(path: Path) -> Weights:
    """TorchScript has an unpickler of its own, which runs no Python."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.load.* is deprecated")
        with refused_as(CheckpointError, path, "it is TorchScript and damaged; get it again"):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
