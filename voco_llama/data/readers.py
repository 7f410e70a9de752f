"""The formats a data set can be in, by name: the one place that maps a configuration's `format` to a reader."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from voco_llama.data.caption_csv import CaptionCsv
from voco_llama.data.llava_json import LlavaJson
from voco_llama.data.media_root import MediaRoot
from voco_llama.data.record_files import Sizes
from voco_llama.data.records import Record
from voco_llama.data.video_chatgpt import VideoChatGpt
from voco_llama.errors import SettingsError


class Reader(Protocol):
    """What every reader is: a sequence of records, picklable, with their sizes known beforehand.

    `[index]` raises a `DataError` where the record is not valid and an `IndexError` where there is none.
    """

    file: Path

    @property
    def sizes(self) -> Sizes:
        """How much there is in each record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


FORMATS: dict[str, Callable[..., Reader]] = {
    "llava_json": LlavaJson,
    "caption_csv": CaptionCsv,
    "video_chatgpt": VideoChatGpt,
}


def open_reader(
    format: str,
    file: str | Path,
    media_folder: str | Path | MediaRoot | None = None,
    index_folder: str | Path | None = None,
    **options: Any,
) -> Reader:
    """Opens a data set.

    Args:
        format: One of `FORMATS`.
        file: The file of its records.
        media_folder: The folder or archive of its images or clips; None only for text-only `llava_json`.
        index_folder: Where what a large file was scanned for is kept; None = nowhere.
        **options: What the reader takes besides (`caption_csv`: `instruction`, `seed`, column names).

    Raises:
        SettingsError: An unknown format or option, or clips without a folder.
        DataError: The file or the folder is missing, unreadable or empty.
    """
    if format not in FORMATS:
        raise SettingsError(f"data format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    factory = FORMATS[format]
    known = [name for name in list(inspect.signature(factory).parameters)[2:] if name != "index_folder"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise SettingsError(
            f"data format {format!r} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        )
    if media_folder is None and format != "llava_json":
        raise SettingsError(f"data format {format!r} of {file} needs media_folder, the folder of its clips; set it")
    index = None if index_folder is None else Path(index_folder)
    return factory(file, media_folder, index_folder=index, **options)
