"""What contradicts what among the settings of the data; a part of `voco_llama.training.checks`."""

from voco_llama.data.media.roots import list_archives
from voco_llama.data.readers import check_streamed
from voco_llama.data.readers.hf_dataset import is_hub_name
from voco_llama.errors import SettingsError
from voco_llama.settings import TrainSettings
from voco_llama.training.loss_checks import require, require_path

LEAST_TEXT = 2
"""Tokens of a row: one that is read, and one that is learned."""


def check_data(settings: TrainSettings) -> None:
    """Refuse settings of the data that contradict each other or the stage; nothing is read from disk."""
    data = settings.data
    require(bool(data.sources), "data.sources is empty: choose a data=... group or list a source")
    for index, source in enumerate(data.sources):
        require(source.weight > 0, f"data.sources.{index}.weight is {source.weight}: give a number above 0")
        require(
            source.limit is None or source.limit > 0, f"data.sources.{index}.limit is {source.limit}: give 1 or more"
        )
        list_archives(source.archives, f"data.sources.{index}.archives")
    require(
        not data.keep_in_memory or not settings.trainer.get("dataloader_num_workers"),
        "data.keep_in_memory keeps rows in the training process: set trainer.dataloader_num_workers=0",
    )
    if data.streaming:
        _check_streaming(settings)
    for name in ("max_length", "num_frames", "shuffle_buffer"):
        require(getattr(data, name) > 0, f"data.{name} is {getattr(data, name)}: give 1 or more")


def _check_streaming(settings: TrainSettings) -> None:
    data = settings.data
    for source in data.sources:
        check_streamed(source.format, source.file)
    require(
        data.grouping == "none",
        f"data.streaming with data.grouping={data.grouping} would read everything for its lengths: set"
        " data.grouping=none",
    )
    require(not data.keep_in_memory, "data.streaming and data.keep_in_memory contradict each other: choose one")
    require(settings.stage.name != "clip", "stage clip trains on the toy world: set data.streaming=false")


def check_data_paths(settings: TrainSettings) -> None:
    """Refuse files, folders and archives that are not there."""
    for index, source in enumerate(settings.data.sources):
        if source.format != "hf_dataset" or not is_hub_name(source.file):
            require_path(f"data.sources.{index}.file", source.file, settings)
        if source.media_folder is not None:
            require_path(f"data.sources.{index}.media_folder", source.media_folder, settings)
        for prefix, archives in list_archives(source.archives).items():
            for archive in archives:
                require_path(f"data.sources.{index}.archives.{prefix.rstrip('/')}", archive, settings)


def segments_a_row(settings: TrainSettings) -> int:
    """Segments of a usual row: the frames of a clip, one image, or none."""
    return {"language": 0, "video": settings.data.num_frames}.get(settings.stage.name, 1)


def tokens_for_text(settings: TrainSettings, segment_tokens: int) -> int:
    """Tokens that a row of full length has left for its text.

    Args:
        settings: Of the training.
        segment_tokens: What one segment takes in a row.

    Raises:
        SettingsError: None are left.
    """
    segments, longest = segments_a_row(settings), settings.data.max_length
    left = longest - segments * segment_tokens
    if left < LEAST_TEXT:
        raise SettingsError(
            f"data.max_length is {longest}, but {segments} segments of {segment_tokens} tokens are"
            f" {segments * segment_tokens}: raise it, or lower data.num_frames"
        )
    return left
