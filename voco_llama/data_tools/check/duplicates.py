"""Records that a data set holds twice, found by digests of all of them: 16 bytes a record, whatever its size."""

import heapq
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from voco_llama.data.readers.opening import Reader
from voco_llama.data.readers.record_files import name_record, shown
from voco_llama.data_tools.check.examine import UNREAD, inspect
from voco_llama.data_tools.check.kinds import Problem


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
    return Problem("duplicate", source, record, record_id, message)


def _repeated_id(reader: Reader, source: int, second: int, first: int, number: int) -> Problem:
    name, record_id = _named(reader, second)
    message = (
        f"{name}: {number} records of different content have the id {shown(record_id)}, the first is record {first}"
    )
    return Problem("repeated_id", source, second, record_id, f"{message}; give each its own")


def _named(reader: Reader, index: int) -> tuple[str, str | None]:
    record, _ = inspect(reader, index)
    return (name_record(reader.file, index), None) if record is None else (record.source, record.id)
