"""What is wrong with records: conversation, images or clips, length as the model would see it, and repetitions.

Records that a data set holds twice are found by digests of all of them: 16 bytes a record, whatever its size.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from voco_llama.data.media.images import format_in_name, load_image, read_image_header
from voco_llama.data.media.stored import MediaFile, StoredFile
from voco_llama.data.media.video import count_frames, read_frames
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.readers import Reader
from voco_llama.data.records import IMAGE_MARK, Record, name_record
from voco_llama.errors import DataError, ProblemKind, shown
from voco_llama.tokens import IMAGE_TOKEN, VOCO_TOKEN

UNREAD = 0
"""In place of the digest of a record that cannot be read."""


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

    @property
    def place(self) -> tuple[int, int]:
        """What problems are ordered by."""
        return self.source, self.record


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
                yield DataError(
                    f"{record.source}: no token of an answer to train on; give it one", ProblemKind.EMPTY_ANSWER
                )
            elif limit is not None and len(row) > limit:
                self.processor.lay_out(record.turns, num_segments, max_length=limit)
                message = f"{len(row)} tokens, cut to data.max_length={limit}; raise it to keep the end of the text"
                yield DataError(f"{record.source}: {message}", ProblemKind.CUT)
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
            yield DataError(f"{record.source}: {message}", ProblemKind.SPECIAL_TOKEN_TEXT)

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
        return [DataError(str(error), ProblemKind.UNDECODABLE)]
    if format_in_name(file.name) in (None, header.format):
        return []
    ending = Path(file.name).suffix
    message = (
        f"image {file}: a {header.format} file named {ending}; it is read, other programs may refuse it: rename it"
    )
    return [DataError(message, ProblemKind.OTHER_FORMAT)]


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
        return [DataError(str(error), ProblemKind.UNDECODABLE)]
    return []


def _examine_file(file: MediaFile, where: str) -> list[DataError]:
    if isinstance(file, StoredFile):  # whatever it lies in knows of it
        return []
    if not file.is_file():
        return [DataError(f"{where}: no such file; fetch it, or take the record out", ProblemKind.MISSING_FILE)]
    if file.stat().st_size == 0:
        return [DataError(f"{where}: zero bytes; fetch it again, or take the record out", ProblemKind.EMPTY_FILE)]
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


def later_copies(contents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where a digest stands that stood before.

    Args:
        contents: Of each source, `[records]` uint64; `UNREAD` is equal to nothing.

    Returns:
        Places in all sources one after another, int64: of the copies, ascending, and of the first of each.
    """
    digests = np.concatenate(contents)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    first = first[group]
    copies = np.flatnonzero((first != np.arange(len(digests))) & (digests != UNREAD))
    return copies, first[copies]


def repeated_ids(ids: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids that several records of a source have.

    Args:
        ids: `[records]` uint64 digests.
        counted: `[records]` bool: the records that count (not those unread, and of copies the first alone).

    Returns:
        For each such id the index of the second record that has it, of the first, and the number of all.
    """
    places = np.flatnonzero(counted)
    _, first, group, number = np.unique(ids[places], return_index=True, return_inverse=True, return_counts=True)
    later = np.flatnonzero(first[group] != np.arange(len(places)))
    _, second = np.unique(group[later], return_index=True)
    second = np.sort(later[second])
    return places[second], places[first[group[second]]], number[group[second]]


def find_repetitions(
    readers: Sequence[Reader], contents: Sequence[np.ndarray], ids: Sequence[np.ndarray]
) -> Iterator[Problem]:
    """`duplicate` for each later copy, `repeated_id` for each id (once, at its second record), in order.

    Args:
        readers: The sources.
        contents: Of each source, `[records]` uint64 digests of conversation and media.
        ids: Likewise of the ids.
    """
    starts = np.cumsum([0, *(len(part) for part in contents)])
    copies, firsts = later_copies(contents)
    for source, reader in enumerate(readers):
        here = (copies >= starts[source]) & (copies < starts[source + 1])
        own = copies[here] - starts[source]
        counted = contents[source] != UNREAD
        counted[own] = False
        duplicates = map(partial(_duplicate, readers, source, starts), own.tolist(), firsts[here].tolist())
        shared = map(
            partial(_repeated_id, reader, source), *(part.tolist() for part in repeated_ids(ids[source], counted))
        )
        yield from heapq.merge(duplicates, shared, key=lambda problem: problem.place)


def _duplicate(readers: Sequence[Reader], source: int, starts: np.ndarray, record: int, first: int) -> Problem:
    other = int(np.searchsorted(starts, first, side="right")) - 1
    name, record_id = _named(readers[source], record)
    twin = name_record(readers[other].file, int(first - starts[other]))
    message = f"{name}: the same conversation on the same media as {twin}; take one of them out"
    return Problem(ProblemKind.DUPLICATE, source, record, record_id, message)


def _repeated_id(reader: Reader, source: int, second: int, first: int, number: int) -> Problem:
    name, record_id = _named(reader, second)
    message = (
        f"{name}: {number} records of different content have the id {shown(record_id)}, the first is record {first}"
    )
    return Problem(ProblemKind.REPEATED_ID, source, second, record_id, f"{message}; give each its own")


def _named(reader: Reader, index: int) -> tuple[str, str | None]:
    record, _ = inspect(reader, index)
    return (name_record(reader.file, index), None) if record is None else (record.source, record.id)
