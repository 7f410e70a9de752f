"""Folders by name: a model of the Hugging Face hub stands for the folder of it in the local cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from voco_llama.errors import CheckpointError, one_line

DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configurations and tokenizers."""

FINAL_FOLDER = "final"
"""Of a run's folder: the model that it trained."""

WEIGHTS = ("*.safetensors", "*.bin")

FILES = (".parquet", ".arrow", ".json", ".jsonl")
"""Endings by which a name is a file's, although it reads like one of the hub."""

_HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def is_hub_name(name: str | Path) -> bool:
    """Whether it is not a path here, and reads as `owner/name`."""
    return bool(_HUB_NAME.fullmatch(str(name))) and Path(name).suffix not in FILES and not Path(name).exists()


def is_cached(name: str, files: Sequence[str], kind: str = "model") -> bool:
    """Whether the hub's cache holds one of these files of a model or, in case of a `dataset`, anything of it."""
    if kind == "dataset":
        return (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)).is_dir()
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def local_folder(
    name: str | Path, files: Sequence[str] = (*DESCRIPTIONS, *WEIGHTS), revision: str | None = None
) -> Path:
    """The folder of that name; if there is none, the hub's model of that name (`user/model`), fetched into the cache.

    Args:
        name: A folder, or a hub name, which is asked for only where no such folder is.
        files: Patterns of what is needed of a hub's model.
        revision: A branch, a tag or a commit of it; None: the newest.

    Returns:
        The folder. One that is neither here nor a hub name is returned as it is, for its reader to miss it.

    Raises:
        CheckpointError: The hub has no such model, or cannot be asked and the cache does not hold it; or a revision of
            a folder is asked for.
    """
    if not is_hub_name(name):
        if revision is not None:
            raise CheckpointError(f"{name}: is a folder, and revision={revision} is one of a hub's model: leave it out")
        return Path(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(files), revision=revision))
    except Exception as error:  # of the library or of the network, of any type
        raise CheckpointError(
            f"{name}: no such folder, and the hub does not give a model of that name ({one_line(error)}): name a"
            " folder, or download the model first (hf download)"
        ) from error
