"""What is wrong with records: conversation, images or clips, length as the model would see it, and repetitions.

Records that a data set holds twice are found by digests of all of them: 16 bytes a record, whatever its size.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from voco_llama.data.media.images import format_in_name, load_image, read_image_header
from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.data.media.video import count_frames, read_frames
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers import Reader
from voco_llama.data.records import IMAGE_MARK, Record, blaming_record, name_record
from voco_llama.data_tools.chunks import Chunk
from voco_llama.errors import DataError, ProblemKind, shown
from voco_llama.tokens import IMAGE_TOKEN, VOCO_TOKEN

UNREAD = 0
"""In place of the digest of a record that cannot be read."""

DIGESTS = np.dtype([("content", np.uint64), ("id", np.uint64)])
"""Of a record: of conversation and media, and of its id; `UNREAD` where it is not valid."""

Found = Iterator[tuple[ProblemKind, str]]
"""Kinds of problems, each with what is wrong and what to do."""


@dataclass(frozen=True)
class Problem:
    """Something about one record.

    Attributes:
        kind: What it is.
        source: Number of the data source.
        record: Its index in the source, from 0.
        id: Its own id, where it could be read.
        message: One line: file, record, what is wrong, what to do.
    """

    kind: ProblemKind
    source: int
    record: int
    id: str | None
    message: str


@dataclass(frozen=True)
class Examined:
    """A chunk of records: their problems in order, and their digests, `[records]` of `DIGESTS`."""

    source: int
    records: Sequence[int]
    problems: list[Problem]
    digests: np.ndarray


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

    def __call__(self, chunk: Chunk) -> Examined:
        """Examine some records of a source."""
        source, records = chunk
        reader, problems = self.readers[source], []
        digests = np.full(len(records), UNREAD, dtype=DIGESTS)
        for place, index in enumerate(map(int, records)):
            found: list[tuple[ProblemKind, str]] = []
            record = _inspect(reader, index, found)
            if record is not None:
                is_bad = any(not kind.is_note for kind, _ in found)
                if not is_bad:
                    digests[place] = _digest(*_identity(record, reader)), _digest(record.id)
                looks = [] if is_bad else [self._row(record)]
                looks += [self._media(record), self._spelled_out(record)]
                for look in looks:
                    _collect(look, record, reader.file, index, found)
            record_id = None if record is None else record.id
            problems += [Problem(kind, source, index, record_id, message) for kind, message in found]
        return Examined(source, records, problems, digests)

    def _row(self, record: Record) -> Found:
        """What is wrong with its length; `VoCoProcessor.row` on a record whose images are all there."""
        if self.processor is None:
            return
        limit = self.processor.max_length
        try:
            length = len(self.processor.lay_out_record(record))
            if limit is not None and length > limit:
                self.processor.lay_out_record(record, limit)
                message = f"{length} tokens, cut to data.max_length={limit}; raise it to keep the end of the text"
                yield ProblemKind.CUT, message
        except DataError as error:
            yield error.kind, str(error)

    def _media(self, record: Record) -> Found:
        for file in record.images:
            yield from self._file(file, "image")
        if record.video is not None:
            yield from self._file(record.video, "clip")

    def _file(self, file: MediaFile, noun: str) -> Found:
        """What is wrong with an image or a clip: it is not there or `undecodable`, or its format is not its name's."""
        if not isinstance(file, StoredFile):  # else whatever it lies in knows of it
            if not file.is_file():
                yield ProblemKind.MISSING_FILE, f"{noun} {file}: no such file; fetch it, or take the record out"
                return
            if file.stat().st_size == 0:
                yield ProblemKind.EMPTY_FILE, f"{noun} {file}: zero bytes; fetch it again, or take the record out"
                return
        if self.depth == "exists":
            return
        try:
            if noun == "clip":
                read_frames(file, self.num_frames) if self.depth == "decode" else count_frames(file)
                return
            header = read_image_header(file)
            if self.depth == "decode":
                load_image(file)
        except DataError as error:
            yield ProblemKind.UNDECODABLE, str(error)
            return
        if format_in_name(file.name) not in (None, header.format):
            message = f"image {file}: a {header.format} file named {Path(file.name).suffix}; it is read, other programs"
            yield ProblemKind.OTHER_FORMAT, f"{message} may refuse it: rename it"

    def _spelled_out(self, record: Record) -> Found:
        found = {token for token in self._special_tokens for turn in record.turns if token in turn.text}
        if found:
            message = f"the text spells out {', '.join(sorted(found))}, which is read as text; take it out if unmeant"
            yield ProblemKind.SPECIAL_TOKEN_TEXT, message

    @cached_property
    def _special_tokens(self) -> set[str]:
        """Those of the tokenizer and ours; the image's mark has checks of its own."""
        known = {IMAGE_TOKEN, VOCO_TOKEN, *(self.processor.special_tokens if self.processor else ())}
        return known - {IMAGE_MARK}


def _inspect(reader: Reader, index: int, found: list[tuple[ProblemKind, str]]) -> Record | None:
    """A record as far as it can be read; all that is wrong with it is added to `found`."""
    try:
        with blaming_record(reader.file, index):
            return reader.read(index, lambda error: found.append((error.kind, str(error))))
    except DataError as error:
        found.append((error.kind, str(error)))
        return None


def _collect(look: Found, record: Record, file: Path, index: int, found: list[tuple[ProblemKind, str]]) -> None:
    """Add what a look at a record finds, and what a library makes of it."""
    try:
        with blaming_record(file, index):
            for kind, text in look:
                found.append((kind, f"{record.source}: {text}"))
    except DataError as error:
        found.append((error.kind, str(error)))


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


def find_repetitions(readers: Sequence[Reader], digests: Sequence[np.ndarray]) -> Iterator[Problem]:
    """`duplicate` for each later copy, then `repeated_id` for each id of a source (once, at its second record).

    Args:
        readers: The sources.
        digests: Of each source, `[records]` of `DIGESTS`.
    """
    records = pd.concat(map(pd.DataFrame, digests), keys=range(len(digests)), names=["source", "record"]).reset_index()
    records = records[records["content"] != UNREAD]
    is_copy = records.duplicated("content")
    originals = records[~is_copy]
    for copy in records[is_copy].merge(originals, on="content", suffixes=("", "_first")).itertuples():
        record = readers[copy.source][copy.record]
        twin = name_record(readers[copy.source_first].file, copy.record_first)
        message = f"{record.source}: the same conversation on the same media as {twin}; take one of them out"
        yield Problem(ProblemKind.DUPLICATE, copy.source, copy.record, record.id, message)
    of_an_id = originals.groupby(["source", "id"])["record"]
    numbers = {"number": of_an_id.transform("size"), "first": of_an_id.transform("first"), "place": of_an_id.cumcount()}
    for second in originals.assign(**numbers).query("place == 1").itertuples():
        record = readers[second.source][second.record]
        message = (
            f"{record.source}: {second.number} records of different content have the id {shown(record.id)}, the first"
            f" is record {second.first}; give each its own"
        )
        yield Problem(ProblemKind.REPEATED_ID, second.source, second.record, record.id, message)
