"""Frames of a clip, sampled uniformly over its whole length.

A clip is read twice: once only its packets, to count the frames (many containers do not state their number, and some
state a wrong one), then decoded frame by frame, keeping the wanted ones. So memory holds `num_frames` frames, however
long the clip. Frames stand upright, as images do: turned as the container's note of a rotation says.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.errors import DataError, ProblemKind, SettingsError, VoCoError, one_line

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_FRAME_PIXELS = 2**25
"""Most pixels of a frame padded to a square: 5792 on a side, which admits 4K."""

MAX_CLIP_FRAMES = 2**20
"""Most frames in a clip: nine hours at 30 a second."""

CLIP_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
"""Clips are looked for under these endings, in this order."""

LEAST_SHARE = 0.75
"""A clip whose frames span less than this share of the length it announces is taken for truncated."""

_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
"""By quarter turns against the clock, as PyAV counts them."""

# Containers the demuxer may be: without the list a playlist that calls itself .mp4 could open other files.
_FORMATS = "mov,mp4,matroska,webm,avi"


def list_clips(folder: Path) -> dict[str, str]:
    """Clips lying flat in a folder: name without ending -> file name (of several the first ending)."""
    return choose_clips(path.name for path in folder.iterdir())


def choose_clips(names: Iterable[str]) -> dict[str, str]:
    """Of files with or without folders before them the clips: last part without ending -> name, as `list_clips`."""
    paths = [path for path in map(PurePosixPath, sorted(names)) if path.suffix.lower() in CLIP_ENDINGS]
    clips: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: CLIP_ENDINGS.index(path.suffix.lower())):
        clips.setdefault(path.stem, str(path))
    return clips


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Which frames of `total` stand for the clip, in order.

    With enough frames: `num_frames` different ones evenly from the first to the last, rounded down, as LLaVA's and
    Video-ChatGPT's `linspace` (a single one is the first). With fewer: every frame, each repeated
    `floor(num_frames / total)` or one time more, never another number.

    >>> frame_indices(10, 4)
    [0, 3, 6, 9]
    >>> frame_indices(3, 8)
    [0, 0, 0, 1, 1, 1, 2, 2]
    """
    if total < num_frames:
        return [i * total // num_frames for i in range(num_frames)]
    return [i * (total - 1) // max(num_frames - 1, 1) for i in range(num_frames)]


def read_frames(path: MediaFile | str, num_frames: int) -> list[Image.Image]:
    """Decodes `num_frames` frames of a clip, sampled by `frame_indices` over the whole of it.

    Args:
        path: The clip (mp4, mov, mkv, webm, avi), or where it is stored.
        num_frames: How many frames to return, at least 1.

    Returns:
        `num_frames` RGB images in order of time; a repeated frame is the same object.

    Raises:
        DataError: The clip is missing, corrupt, truncated, without frames, too large a picture, or too long.
        SettingsError: `num_frames` is below 1.
    """
    if num_frames < 1:
        raise SettingsError(f"num_frames must be at least 1, not {num_frames}")
    with _reading(path) as where:
        total = _count_frames(path, where)
        frames, decoded = _decode(path, frame_indices(total, num_frames), where)
        if len(frames) < num_frames and decoded:  # packets without a picture of their own: count what was decoded
            frames, decoded = _decode(path, frame_indices(decoded, num_frames), where)
    if not decoded:
        raise DataError(f"{where}: no frame can be decoded; fetch it again")
    return frames


def count_frames(path: MediaFile | str) -> int:
    """Counts the frames of a clip by its packets, without decoding any.

    Raises:
        DataError: As `read_frames`, as far as it can be told so.
    """
    with _reading(path) as where:
        return _count_frames(path, where)


@contextmanager
def _reading(path: MediaFile | str) -> Iterator[str]:
    """What messages call the clip; the decoder's errors become ours."""
    where = f"clip {path}"
    if not isinstance(path, StoredFile) and not os.path.isfile(path):  # noqa: PTH113 - a name too long is no file either
        raise DataError(f"{where}: no such file; fetch it, or take the record out", ProblemKind.MISSING_FILE)
    try:
        yield where
    except (VoCoError, ImportError):
        raise
    except Exception as error:  # the decoder's, of any type
        raise DataError(f"{where}: corrupt or not a clip ({one_line(error)}); fetch it again") from error


@contextmanager
def _open(path: MediaFile | str, where: str) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    import av  # slow to import, and only clips need it

    options = {"format_whitelist": _FORMATS}
    with ExitStack() as opened:
        file = opened.enter_context(path.open()) if isinstance(path, StoredFile) else str(Path(path).absolute())
        container = opened.enter_context(av.open(file, metadata_errors="ignore", options=options))
        if not container.streams.video:
            raise DataError(f"{where}: holds no video stream; fetch it again or replace it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError(f"{where}: its codec is not one this PyAV decodes; convert it to H.264")
        _check_size(stream.codec_context.width, stream.codec_context.height, where)
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # the decoder's own check, mid-stream
        yield container, stream


def _check_size(width: int, height: int, where: str) -> None:
    if max(width, height) ** 2 > MAX_FRAME_PIXELS:
        side = int(MAX_FRAME_PIXELS**0.5)
        raise DataError(f"{where}: frames too large ({width} x {height}; at most {side} on a side); scale it down")


def _count_frames(path: MediaFile | str, where: str) -> int:
    """Counts the packets that are shown, without decoding; refuses clips that end long before they say they do."""
    count, first, last = 0, None, None
    with _open(path, where) as (container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{where}: corrupt or truncated at frame {count}; fetch it again")
            if not packet.size or packet.is_discard:
                continue
            count += 1
            if count > MAX_CLIP_FRAMES:
                raise DataError(f"{where}: more than {MAX_CLIP_FRAMES} frames; cut it into shorter clips")
            if packet.pts is not None:
                end = packet.pts + (packet.duration or 0)
                first = packet.pts if first is None else min(first, packet.pts)
                last = end if last is None else max(last, end)
        if not count:
            raise DataError(f"{where}: holds no frames; replace it")
        announced = 0 if container.duration is None else container.duration / 1_000_000
        if stream.duration is not None:
            announced = float(stream.duration * stream.time_base)
        if announced and first is not None:
            seconds = float((last - first) * stream.time_base)
            if seconds < LEAST_SHARE * announced:
                raise DataError(
                    f"{where}: truncated ({count} frames in {seconds:.1f} s of the {announced:.1f} s it announces); "
                    "fetch it again"
                )
    return count


def _upright(frame: "VideoFrame") -> Image.Image:
    image, turn = frame.to_image(), _TURNS.get(round(frame.rotation / 90) % 4)
    return image if turn is None else image.transpose(turn)


def _decode(path: MediaFile | str, indices: list[int], where: str) -> tuple[list[Image.Image], int]:
    """Decodes up to the last of `indices` (ascending); returns the frames reached and how many were decoded."""
    frames: list[Image.Image] = []
    decoded = 0
    with _open(path, where) as (container, stream):
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height, where)
            wanted = indices[len(frames) :].count(decoded)
            if wanted:
                frames.extend([_upright(frame)] * wanted)
            decoded += 1
            if len(frames) == len(indices):
                break
    return frames, decoded
