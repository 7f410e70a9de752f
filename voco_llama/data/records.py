"""The record that every reader yields: one conversation and the files it looks at.

A record is plain data, cheap to pickle to worker processes; nothing is decoded here. The mark `<image>` in a
turn's text stands where an image (or, for a clip, all its frames) belongs.
"""

from dataclasses import dataclass
from typing import Literal

from voco_llama.data.media.stored import MediaFile

IMAGE_MARK = "<image>"

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One utterance. `text` keeps its newlines and its `<image>` marks exactly as the file had them."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One training sample.

    Attributes:
        id: The record's own id, or its index if the file gives none.
        turns: User and assistant by turns, the user first.
        images: Image files, one for each `<image>` mark, in order. Empty for text-only records and clips.
        video: A clip; its frames replace the record's single `<image>` mark.
        source: Where the record stands, for messages: `file.json record 17 (id 'x')`.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[MediaFile, ...] = ()
    video: MediaFile | None = None
    source: str = ""

    @property
    def is_text_only(self) -> bool:
        return not self.images and self.video is None
