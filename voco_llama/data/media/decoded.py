"""What a record looks at, decoded: the pixels of each image, and a key that is the same for the same image.

Samples about one image come one after the other where training shares it, so the media decoded last are remembered, by
each process for itself: at 336 pixels a side an image takes 1.4 MB, a clip of 8 frames 11 MB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from voco_llama.data.media.images import ImageTransform, load_image
from voco_llama.data.media.stored import MediaFile, StoredFile, location_hash
from voco_llama.data.media.video import read_frames

HELD_IMAGES, HELD_CLIPS = 16, 2
"""Decoded media that are remembered."""


@dataclass(frozen=True)
class _Source:
    """A file, equal to what was read before if that is the same image or clip, and not changed since."""

    identity: str
    state: tuple[int, int] | None
    file: MediaFile = field(compare=False)

    @classmethod
    def of(cls, file: MediaFile) -> "_Source":
        if isinstance(file, StoredFile):
            return cls(file.identity, None, file)
        try:
            found = Path(file).stat()
        except (OSError, ValueError):  # reading it says what is wrong
            return cls(str(file), None, file)
        return cls(str(file), (found.st_size, found.st_mtime_ns), file)


def decode_images(files: Sequence[MediaFile], transform: ImageTransform) -> dict[str, Tensor]:
    """Images of a record, none or more.

    Returns:
        `pixel_values` `[images, 3, side, side]` float32 and `image_keys` `[images]` int64.

    Raises:
        DataError: As `load_image`.
    """
    sources = [_Source.of(file) for file in files]
    pixels = [_image(source, transform) for source in sources]
    none = torch.empty(0, 3, transform.image_size, transform.image_size)
    keys = [location_hash(source.identity) for source in sources]
    return {"pixel_values": torch.stack(pixels) if pixels else none, "image_keys": torch.tensor(keys, dtype=torch.long)}


def decode_clip(file: MediaFile, num_frames: int, transform: ImageTransform) -> dict[str, Tensor]:
    """So many frames of a clip, as `decode_images`; a frame that is repeated has one key.

    Raises:
        DataError: As `read_frames`.
    """
    source = _Source.of(file)
    pixels, numbers = _frames(source, num_frames, transform)
    keys = [location_hash(source.identity, f"{number} of {num_frames}") for number in numbers]
    return {"pixel_values": pixels[list(numbers)], "image_keys": torch.tensor(keys)}


@lru_cache(maxsize=HELD_IMAGES)
def _image(source: _Source, transform: ImageTransform) -> Tensor:
    return transform(load_image(source.file))


@lru_cache(maxsize=HELD_CLIPS)
def _frames(source: _Source, num_frames: int, transform: ImageTransform) -> tuple[Tensor, tuple[int, ...]]:
    """The different frames, `[different, 3, side, side]`, and which of them each frame is."""
    frames = read_frames(source.file, num_frames)
    different = {id(frame): frame for frame in frames}
    numbers = {name: number for number, name in enumerate(different)}
    return torch.stack([transform(frame) for frame in different.values()]), tuple(numbers[id(f)] for f in frames)
