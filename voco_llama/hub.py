"""Folders by name: a model of the Hugging Face hub stands for the folder of it in the local cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from voco_llama.errors import CheckpointError, one_line

DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configurations and tokenizers."""

WEIGHTS = ("*.safetensors", "*.bin")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | Path, files: Sequence[str] = (*DESCRIPTIONS, *WEIGHTS)) -> Path:
    """The folder of that name; if there is none, the hub's model of that name (`user/model`), fetched into the cache.

    Args:
        name: A folder, or a hub name, which is asked for only where no such folder is.
        files: Patterns of what is needed of a hub's model.

    Returns:
        The folder. One that is neither here nor a hub name is returned as it is, for its reader to miss it.

    Raises:
        CheckpointError: The hub has no such model, or cannot be asked and the cache does not hold it.
    """
    if Path(name).exists() or not _HUB_NAME.fullmatch(str(name)):
        return Path(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and the hub does not give a model of that name ({one_line(error)}): name a"
            " folder, or download the model first (hf download)"
        ) from error
