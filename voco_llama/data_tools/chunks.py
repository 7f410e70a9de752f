"""Work over many records in several processes, its results in order.

PyTorch's `DataLoader` does it: it keeps the order, prefetches little, and ends its workers on an interrupt. Results are
plain objects; nothing of them is collated.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from voco_llama.errors import SettingsError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

CHUNK = 64
"""Records a task: few enough that a progress bar moves, and enough that passing results on costs little."""

LOG_SECONDS = 30.0
"""Between lines of progress, where there is no terminal for a bar."""

Chunk = tuple[int, Sequence[int]]
"""A source and some of its records."""


def chunks_of(records: Sequence[Sequence[int]]) -> list[Chunk]:
    """The records of each source, cut up.

    >>> [(source, list(part)) for source, part in chunks_of([range(65), range(2)])][1:]
    [(0, [64]), (1, [0, 1])]
    """
    return [
        (source, part[start : start + CHUNK])
        for source, part in enumerate(records)
        for start in range(0, len(part), CHUNK)
    ]


def in_order(
    function: Callable[[int, Sequence[int]], Result], chunks: Sequence[Chunk], workers: int | None, what: str
) -> Iterator[Result]:
    """Results of a function over all chunks, in their order, with a progress bar or lines in the log.

    Args:
        function: Takes a source and its records; picklable.
        chunks: See `chunks_of`.
        workers: Processes; None: one for each core this process may use, 0: this process.
        what: Named by the progress.

    Raises:
        SettingsError: A negative number of workers.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 0:
        raise SettingsError(f"workers is {workers}: give 0 or more, or null for one a core")
    loader = DataLoader(_Tasks(function, chunks), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    total, done, logged = sum(len(records) for _, records in chunks), 0, time.monotonic()
    with tqdm(total=total, desc=what, unit=" records", disable=None) as bar:
        for (_, records), result in zip(chunks, loader, strict=True):
            yield result
            done += len(records)
            bar.update(len(records))
            if not sys.stderr.isatty() and time.monotonic() - logged > LOG_SECONDS:
                logged = time.monotonic()
                logger.info("%s: %d of %d records", what, done, total)


class _Tasks(Dataset, Generic[Result]):
    def __init__(self, function: Callable[[int, Sequence[int]], Result], chunks: Sequence[Chunk]) -> None:
        self._function, self._chunks = function, chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> Result:
        return self._function(*self._chunks[index])


def _as_it_is(value: Any) -> Any:
    return value
