"""Rows against the positions that the language model was made for; a part of `voco_llama.training.checks`."""

from contextlib import suppress

from voco_llama.errors import require
from voco_llama.settings import ModelSettings, TrainSettings


def check_positions_here(settings: TrainSettings, segments: int) -> None:
    """`check_positions` for a model whose configuration is here; of one that cannot be read, loading says more."""
    if (known := _known(settings.model)) is not None:
        check_positions(settings, segments, *known)


def check_positions(settings: TrainSettings, segments: int, limit: int | None, num_vision: int) -> None:
    """Refuse rows that reach beyond the positions of the language model.

    Where text does not see images (and no teacher does), the vision tokens of a clip's frames take no positions from
    it; any other row of full length may be text from end to end.

    Args:
        segments: Of a usual row.
        limit: Positions; None: not known.
        num_vision: Vision tokens of an image, as the tower gives them.

    Raises:
        SettingsError: It names the tokens, the positions, and the setting.
    """
    if limit is None:
        return
    compression, longest = settings.compression, settings.data.max_length
    hidden = num_vision if compression.compressor == "language_model" else 0
    segment = hidden + compression.num_voco
    model = f"the language model was made for {limit:,} positions (max_position_embeddings)"
    require(
        segment <= limit, f"an image is {segment:,} tokens, and {model}: use another model.vision or model.language"
    )
    sees_images = compression.condition == "full" or settings.loss.teacher not in ("none", "most_voco")
    beside = 0 if sees_images or settings.stage.name != "video" else segments * hidden
    at_once = f", {longest - beside:,} of them beside the clips' vision tokens" if beside else ""
    require(
        longest - beside <= limit,
        f"data.max_length is {longest:,} tokens{at_once}, and {model}: set data.max_length to {limit + beside} or less",
    )


def _known(model: ModelSettings) -> tuple[int | None, int] | None:
    """Positions of the language model, and vision tokens of an image; None where their configurations are not here."""
    from transformers import AutoConfig  # slow

    from voco_llama.configuration import VoCoLlamaConfig, max_positions
    from voco_llama.vision_config import num_patches, read_vision_config

    with suppress(Exception):  # whatever is wrong with them, who reads them says so
        if model.checkpoint is not None:
            config = VoCoLlamaConfig.from_pretrained(model.checkpoint)
            return max_positions(config.text_config), config.num_vision_tokens
        name = model.language.pretrained or model.language.config
        text_config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        return max_positions(text_config), num_patches(read_vision_config(model.vision.name))
    return None
