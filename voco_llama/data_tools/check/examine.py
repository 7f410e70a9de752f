"""What is wrong with one record: its conversation, its images or clips, and its length as the model would see it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from voco_llama.data.media.headers import format_in_name, read_image_header
from voco_llama.data.media.images import load_image
from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.data.media.video import count_frames, read_frames
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers.opening import Reader
from voco_llama.data.records import IMAGE_MARK, Record
from voco_llama.data_tools.check.kinds import Problem
from voco_llama.errors import DataError
from voco_llama.tokens import IMAGE_TOKEN, VOCO_TOKEN

UNREAD = 0
"""In place of the digest of a record that cannot be read."""


@dataclass(frozen=True)
class Examined:
    """A chunk of records.

    Attributes:
        problems: In the order of the records.
        contents: `[records]` uint64: digests of conversation and media; `UNREAD` where the record is not valid.
        ids: `[records]` uint64: digests of their ids, likewise.
    """

    source: int
    records: Sequence[int]
    problems: list[Problem]
    contents: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class Examiner:
    """See the module; picklable, for worker processes.

    Attributes:
        readers: The sources.
        processor: Lays out rows; None: lengths are not looked at.
        depth: `decode` reads all of an image or clip, `header` its header, `exists` looks whether it is there.
        num_frames: Taken from a clip.
    """

    readers: Sequence[Reader]
    processor: VoCoProcessor | None
    depth: str
    num_frames: int

    def __call__(self, source: int, records: Sequence[int]) -> Examined:
        """Examine some records of a source."""
        problems: list[Problem] = []
        contents, ids = (np.full(len(records), UNREAD, dtype=np.uint64) for _ in range(2))
        for place, index in enumerate(records):
            record, wrong = inspect(self.readers[source], index)
            if record is not None and not wrong:
                contents[place] = _digest(*_identity(record, self.readers[source]))
                ids[place] = _digest(record.id)
                wrong += self._row(record)
            if record is not None:
                wrong += self._media(record)
                wrong += self._spelled_out(record)
            record_id = None if record is None else record.id
            problems += [Problem(error.kind, source, int(index), record_id, str(error)) for error in wrong]
        return Examined(source, records, problems, contents, ids)

    def _row(self, record: Record) -> Iterator[DataError]:
        """What is wrong with its length; `VoCoProcessor.row` on a record whose images are all there."""
        if self.processor is None:
            return
        limit, num_segments = self.processor.max_length, 1 if record.video is None else self.num_frames
        try:
            row = self.processor.lay_out(record.turns, num_segments)
            if row.num_trained == 0:
                yield DataError(f"{record.source}: no token of an answer to train on; give it one", "empty_answer")
            elif limit is not None and len(row) > limit:
                self.processor.lay_out(record.turns, num_segments, max_length=limit)
                message = f"{len(row)} tokens, cut to data.max_length={limit}; raise it to keep the end of the text"
                yield DataError(f"{record.source}: {message}", "cut")
        except DataError as error:
            yield DataError(f"{record.source}: {error}", error.kind)

    def _media(self, record: Record) -> Iterator[DataError]:
        for file in record.images:
            for error in examine_image(file, self.depth):
                yield DataError(f"{record.source}: {error}", error.kind)
        if record.video is not None:
            for error in examine_clip(record.video, self.depth, self.num_frames):
                yield DataError(f"{record.source}: {error}", error.kind)

    def _spelled_out(self, record: Record) -> Iterator[DataError]:
        found = {token for token in self._special_tokens for turn in record.turns if token in turn.text}
        if found:
            message = f"the text spells out {', '.join(sorted(found))}, which is read as text; take it out if unmeant"
            yield DataError(f"{record.source}: {message}", "special_token_text")

    @cached_property
    def _special_tokens(self) -> list[str]:
        """Those of the tokenizer and ours; the image's mark has checks of its own."""
        known = {IMAGE_TOKEN, VOCO_TOKEN, *(self.processor.tokenizer.all_special_tokens if self.processor else ())}
        return sorted(known - {IMAGE_MARK})


def inspect(reader: Reader, index: int) -> tuple[Record | None, list[DataError]]:
    """A record as far as it can be read, and all that is wrong with it."""
    found: list[DataError] = []
    try:
        return reader.read(int(index), found.append), found
    except DataError as error:
        return None, [*found, error]


def examine_image(file: MediaFile, depth: str) -> list[DataError]:
    """What is wrong with an image, `undecodable` or not there, or else whether its format is not its name's."""
    there = _examine_file(file, f"image {file}")
    if there or depth == "exists":
        return there
    try:
        header = read_image_header(file)
        if depth == "decode":
            load_image(file)
    except DataError as error:
        return [DataError(str(error), "undecodable")]
    if format_in_name(file.name) in (None, header.format):
        return []
    ending = Path(file.name).suffix
    message = (
        f"image {file}: a {header.format} file named {ending}; it is read, other programs may refuse it: rename it"
    )
    return [DataError(message, "other_format")]


def examine_clip(file: MediaFile, depth: str, num_frames: int) -> list[DataError]:
    """What is wrong with a clip."""
    there = _examine_file(file, f"clip {file}")
    if there or depth == "exists":
        return there
    try:
        if depth == "decode":
            read_frames(file, num_frames)
        else:
            count_frames(file)
    except DataError as error:
        return [DataError(str(error), "undecodable")]
    return []


def _examine_file(file: MediaFile, where: str) -> list[DataError]:
    if isinstance(file, StoredFile):  # whatever it lies in knows of it
        return []
    if not file.is_file():
        return [DataError(f"{where}: no such file; fetch it, or take the record out", "missing_file")]
    if file.stat().st_size == 0:
        return [DataError(f"{where}: zero bytes; fetch it again, or take the record out", "empty_file")]
    return []


def _identity(record: Record, reader: Reader) -> Iterator[str]:
    """What makes two records the same: not their ids, nor an instruction that the reader drew."""
    drawn = {f"{IMAGE_MARK}\n{text}" for text in getattr(reader, "instructions", ())}
    yield from (str(file) for file in (*record.images, record.video or ""))
    yield from ("" if turn.text in drawn else turn.text for turn in record.turns)


def _digest(*parts: str) -> int:
    """64 bits that are the same for the same texts; never `UNREAD`."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8) + data)
    return int.from_bytes(digest.digest()) or 1
