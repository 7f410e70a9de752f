"""A question on images or clips, as the answering code and its callers exchange it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from voco_llama.data.media.video import read_frames
from voco_llama.data.records import IMAGE_MARK
from voco_llama.errors import DataError


@dataclass(frozen=True)
class Question:
    """What is asked, and about what.

    Attributes:
        id: Names the question in messages.
        prompt: What the user says, without image marks.
        look: What the question is about: images, paths of clips, or nothing. Called when the question's turn comes.
        generation: Keywords of `generate`; `max_new_tokens` is among them.
        until: The answer ends before the first of these.
    """

    id: str
    prompt: str
    look: Callable[[], Sequence[Image.Image | str | Path]] = tuple
    generation: Mapping[str, Any] = field(default_factory=dict)
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visual:
    """One image, or the frames of one clip; equal keys show the same."""

    key: str
    images: tuple[Image.Image, ...]


def see(shown: Image.Image | str | Path, num_frames: int) -> Visual:
    """An image, or a clip's frames.

    Args:
        shown: An image, or the path of a clip.
        num_frames: Frames taken from a clip.

    Raises:
        DataError: It is neither, or the clip cannot be read.
    """
    if isinstance(shown, Image.Image):
        content = hashlib.sha256(f"{shown.mode} {shown.size} ".encode() + shown.tobytes())
        return Visual(content.hexdigest(), (shown,))
    if isinstance(shown, str | Path):
        return Visual(f"{Path(shown).absolute()}", tuple(read_frames(shown, num_frames)))
    raise DataError(f"a question looks at a {type(shown).__name__}: images and paths of clips can be answered on")


def with_marks(prompt: str, visuals: Sequence[Visual]) -> str:
    """LLaVA's order: marks of images apart by a blank, those of a clip's frames side by side, then the text."""
    marks = " ".join(IMAGE_MARK * len(visual.images) for visual in visuals)
    return f"{marks}\n{prompt}" if marks else prompt


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of `until`."""
    for stop in until:
        text = text.split(stop)[0]
    return text.strip()
