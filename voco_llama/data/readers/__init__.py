"""Readers of records, one file a format; here the one place that maps a configuration's `format` to its reader."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voco_llama.data.media.roots import MediaRoot
from voco_llama.data.readers.caption_csv import CaptionCsv
from voco_llama.data.readers.hf_dataset import HfDataset, ParquetStream
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.data.readers.video_chatgpt import VideoChatGpt
from voco_llama.data.records import Reader
from voco_llama.errors import SettingsError

FORMATS: dict[str, Callable[..., Reader]] = {
    "llava_json": LlavaJson,
    "caption_csv": CaptionCsv,
    "video_chatgpt": VideoChatGpt,
    "hf_dataset": HfDataset,
}

MEDIA_INSIDE = ("llava_json", "hf_dataset")
"""Formats that need no folder of media: some of their records are text-only, or hold their images."""

STREAMS: dict[str, Callable[..., Reader]] = {"hf_dataset": ParquetStream}
"""What reads a format where `data.streaming` is on."""


def open_reader(
    format: str,
    file: str | Path,
    media_folder: str | Path | MediaRoot | None = None,
    index_folder: str | Path | None = None,
    shuffle_buffer: int | None = None,
    **options: Any,
) -> Reader:
    """Opens a data set.

    Args:
        format: One of `FORMATS`.
        file: The file of its records.
        media_folder: The folder or archive of its images or clips; None only for those of `MEDIA_INSIDE`.
        index_folder: Where what a large file was scanned for is kept; None = nowhere.
        shuffle_buffer: Of a data set that is read in place (`STREAMS`), the rows from whose range rows are asked for
            at the same time; None = not streamed.
        **options: What the reader takes besides (`caption_csv`: `instruction`, `seed`, column names).

    Raises:
        SettingsError: An unknown format or option, one that cannot be streamed, or clips without a folder.
        DataError: The file or the folder is missing, unreadable or empty.
    """
    if format not in FORMATS:
        raise SettingsError(f"data format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    if shuffle_buffer is not None:
        check_streamed(format, file)
    open_format = FORMATS[format] if shuffle_buffer is None else STREAMS[format]
    known = [name for name in list(inspect.signature(open_format).parameters)[2:] if name != "index_folder"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise SettingsError(
            f"data format {format!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        )
    if media_folder is None and format not in MEDIA_INSIDE:
        raise SettingsError(f"data format {format!r} of {file} needs media_folder, the folder of its clips; set it")
    index = None if index_folder is None else Path(index_folder)
    reader = open_format(file, media_folder, index_folder=index, **options)
    if shuffle_buffer is not None:
        reader.shuffle_buffer = shuffle_buffer
    return reader


def check_streamed(format: str, file: str | Path) -> None:
    """Raises a `SettingsError` where a format cannot be streamed."""
    if format not in STREAMS:
        raise SettingsError(
            f"data.streaming: format {format!r} of {file} is not streamed, only {', '.join(STREAMS)} (Parquet) is;"
            " set data.streaming=false"
        )
