"""The training's processor, where its tokenizer is at hand: nothing is fetched from the hub."""

import logging
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.settings import TrainSettings
from voco_llama.training.build import build_processor

logger = logging.getLogger(__name__)


def find_processor(settings: TrainSettings) -> tuple[VoCoProcessor | None, str]:
    """The processor, or None, and one line on what lengths in tokens are measured by, or why they are not."""
    model = settings.model
    name = model.checkpoint or model.tokenizer or model.language.pretrained
    try:
        if name is None or not _is_here(name):
            key = "model.tokenizer" if model.checkpoint is None else "model.checkpoint"
            raise CheckpointError(
                f"{key}: {name} is neither a folder here nor in the hub's cache; fetch or name another"
            )
        return build_processor(settings), f"measured by the tokenizer of {name}, at most {settings.data.max_length}"
    except (CheckpointError, SettingsError) as error:
        logger.warning("lengths in tokens are left out: %s", error)
        return None, f"not measured: {error}"


def _is_here(name: str) -> bool:
    try:
        return Path(name).exists() or isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str)
    except HFValidationError:  # a path, and no name on the hub
        return False
