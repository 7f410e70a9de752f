"""A question on images or clips, as the answering code and its callers exchange it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from voco_llama.data.conversations import Prompt
from voco_llama.data.media.stored import MediaFile, content_key
from voco_llama.data.media.video import read_frames
from voco_llama.errors import DataError
from voco_llama.model.cache import VoCoCache


@dataclass(frozen=True)
class Question:
    """What is asked, and about what.

    Attributes:
        id: Names the question in messages.
        prompt: What the user says, or a conversation that ends with it (`voco_llama.data.conversations`); its own image
            marks are taken as `voco_llama.data.prompts.with_marks` says.
        look: What the question is about: images, paths of clips, what `see_clip` gives, or nothing. Called when the
            question's turn comes.
        generation: Keywords of `generate`; `max_new_tokens` is among them.
        until: The answer ends before the first of these.
    """

    id: str
    prompt: Prompt
    look: Callable[[], Sequence["Image.Image | MediaFile | str | Visual"]] = tuple
    generation: Mapping[str, Any] = field(default_factory=dict)
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visual:
    """One image, or the frames of one clip.

    Attributes:
        key: Equal keys show the same, if perhaps in another order.
        read: The image, or the frames in order of time.
        count: How many these are.
        order: Which of them are shown, in this order; None: all, as they are. Whatever the order, a frame is compressed
            once, alone, and each order reads the very same entries.
    """

    key: str
    read: Callable[[], Sequence[Image.Image]]
    count: int = 1
    order: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """How many are shown."""
        return self.count if self.order is None else len(self.order)

    def shown(self) -> Sequence[Image.Image]:
        """The images in the order to be shown."""
        images = self.read()
        return images if self.order is None else [images[i] for i in self.order]

    def entries(self, cache: VoCoCache) -> VoCoCache:
        """The entries in the order to be shown of a cache that has one for each image."""
        return cache if self.order is None else cache[self.order]


def see(looked_at: Image.Image | MediaFile | str | Visual, num_frames: int) -> Visual:
    """An image, or so many frames of a clip that is named by its path.

    Raises:
        DataError: It is neither of these.
        OSError: The clip's file cannot be read.
    """
    if isinstance(looked_at, Visual):
        return looked_at
    if isinstance(looked_at, Image.Image):
        content = hashlib.sha256(f"{looked_at.mode} {looked_at.size} ".encode() + looked_at.tobytes())
        return Visual(content.hexdigest(), lambda: (looked_at,))
    if isinstance(looked_at, str | MediaFile):
        return see_clip(Path(looked_at) if isinstance(looked_at, str) else looked_at, num_frames)
    raise DataError(f"a question looks at a {type(looked_at).__name__}: images and paths of clips can be answered on")


def see_clip(file: MediaFile, num_frames: int, order: tuple[int, ...] | None = None) -> Visual:
    """Frames of a clip, which are read when they are needed; `order` as in `Visual`.

    Raises:
        OSError: The file cannot be read.
    """
    return Visual(f"{content_key(file)} {num_frames}", lambda: read_frames(file, num_frames), num_frames, order)


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of `until`."""
    for stop in until:
        text = text.split(stop)[0]
    return text.strip()
