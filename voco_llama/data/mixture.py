"""Several data sets as one: how much of each, in which order, and what happens to records that cannot be used.

The order is a pure function of the readers' lengths, the weights, the limits and the seed; epochs beyond it (another
shuffle, grouping by length) are the sampler's business. Bad records are found where records are loaded, which is in
worker processes; so each process writes down those it meets, and `summarize_bad_records` merges the lists.
"""

import hashlib
import json
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from voco_llama.data.readers import Reader
from voco_llama.data.records import Record, blaming_record
from voco_llama.errors import DataError, SettingsError
from voco_llama.files import read_json_lines

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_REPLACEMENTS = 64
"""So many bad records in a row are a broken data set (an image folder that was not fetched), not bad records."""

MAX_ENTRIES = 2**31
"""Most records of a source that an epoch may see: their order is held in memory."""

_BAD_FILES = "bad_records.*.jsonl"
_ENTRY = {"file": str, "record": int, "error": str}


class Mixture(Sequence[Record]):
    """A map-style sequence over several readers.

    Of each source a seeded choice of `limit` records is taken (all without a limit; of a streamed source, whole row
    groups). Its weight says how many times these go in: 1 = each once, 2 = each twice, 0.25 = a seeded quarter of
    them, 1.5 = each once and half of them again. The same choice holds in every epoch.

    Args:
        readers: The sources.
        weights: One above 0 for each source; None = 1 for all.
        limits: For each source the most records to take, or None; None = no limits.
        seed: Of the choices and the shuffle.
        shuffle: Mix the sources and shuffle; otherwise source after source, each in its file's order.
        skip_bad_records: What `try_load` does with a bad record: replace it, or raise.
        bad_records_folder: Where the processes list the bad records they replaced; None = they are only logged.

    Attributes:
        num_records: Of each source in an epoch.

    Raises:
        SettingsError: Weights or limits that do not fit the readers, or are not positive.
        DataError: No readers, or a fraction so small that a source contributes nothing.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        weights: Sequence[float] | None = None,
        limits: Sequence[int | None] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        skip_bad_records: bool = False,
        bad_records_folder: str | Path | None = None,
    ) -> None:
        if not readers:
            raise DataError("the data set is empty: no sources; name at least one")
        self.readers = tuple(readers)
        self.skip_bad_records = skip_bad_records
        self.bad_records_folder = None if bad_records_folder is None else Path(bad_records_folder)
        weights = [1.0] * len(self.readers) if weights is None else weights
        limits = [None] * len(self.readers) if limits is None else limits
        for name, values in (("weight", weights), ("limit", limits)):
            if len(values) != len(self.readers):
                raise SettingsError(f"{len(self.readers)} data sources but {len(values)} {name}s; give one for each")
        self._chosen: list[np.ndarray] = []
        entries: list[np.ndarray] = []
        for number, (reader, weight, limit) in enumerate(zip(self.readers, weights, limits, strict=True)):
            generator = np.random.default_rng([seed, number])
            chosen = _choose(reader, limit, generator)
            entries.append(_repeat(reader, chosen, weight, generator))
            self._chosen.append(chosen)
            logger.info("%s: %d of %d records, %d an epoch", reader.file, len(chosen), len(reader), len(entries[-1]))
        self._source = np.repeat(np.arange(len(entries), dtype=np.int32), [len(part) for part in entries])
        self._record = np.concatenate(entries)
        if shuffle:
            order = np.random.default_rng([seed, len(self.readers)]).permutation(len(self._record))
            self._source, self._record = self._source[order], self._record[order]
        self.num_records = np.bincount(self._source, minlength=len(self.readers)).tolist()
        self._bad: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self._record)

    def origin(self, index: int) -> tuple[int, int]:
        """(number of the source, index of the record in it) of an entry."""
        if not 0 <= index < len(self):
            raise IndexError(f"the mixture has {len(self)} entries, no entry {index}")
        return int(self._source[index]), int(self._record[index])

    def records_of(self, source: int) -> np.ndarray:
        """`[entries]` int64 ascending: the records that a source puts into an epoch, each as often as it is seen."""
        return np.sort(self._record[self._source == source])

    def __getitem__(self, index: int) -> Record:
        source, record = self.origin(index)
        return self.readers[source][record]

    def entries_of_sources(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each source its entries, ascending, and which record of the source each is, both `[entries]` int64."""
        for source in range(len(self.readers)):
            entries = np.flatnonzero(self._source == source)
            yield entries, self._record[entries]

    @property
    def order_fingerprint(self) -> str:
        """A hash of which record of which source each entry is; it says nothing of the records' contents."""
        return hashlib.sha256(self._source.tobytes() + self._record.tobytes()).hexdigest()

    @property
    def characters(self) -> np.ndarray:
        """`[entries]` int32: about the bytes of text in each, without decoding anything."""
        return self._gather("characters")

    @property
    def media(self) -> np.ndarray:
        """`[entries]` int32: the images or clips in each; 0 = text-only."""
        return self._gather("media")

    @property
    def medium(self) -> np.ndarray | None:
        """`[entries]` int64: equal where entries look at the same; 0 = at nothing. None: a source does not know.

        What an epoch has of a record beyond the first time counts as looking at something else: it is not seen twice in
        one batch for the sake of sharing.
        """
        if any(reader.sizes.medium is None for reader in self.readers):
            return None
        medium = self._gather("medium", np.int64)
        for entries, records in self.entries_of_sources():
            order = np.argsort(records, kind="stable")
            times = np.arange(len(order)) - np.searchsorted(records, records[order], sorter=order)
            repeated = entries[order[times > 0]]
            medium[repeated] += np.where(medium[repeated], times[times > 0], 0)
        return medium

    def _gather(self, column: str, dtype: type = np.int32) -> np.ndarray:
        gathered = np.empty(len(self), dtype=dtype)
        for (entries, records), reader in zip(self.entries_of_sources(), self.readers, strict=True):
            gathered[entries] = getattr(reader.sizes, column)[records]
        return gathered

    def try_load(self, index: int, load: Callable[[Record], T]) -> T:
        """Loads an entry, as `load_numbered` does."""
        return self.load_numbered(index, load)[0]

    def load_numbered(self, index: int, load: Callable[[Record], T]) -> tuple[T, int]:
        """Loads an entry; a bad record gives way to the next good one of its source, if the settings say so.

        The replacement is the next record in the file's order, from its end back to its start, that is part of the
        mixture and is text-only if and only if the bad one is. So it depends on the files only, not on what was
        loaded before or by which process. Each bad record is logged and written down once in each process.

        Whatever reading it or `load` raises makes the record a bad one, but for other errors of ours: those are of
        settings.

        Returns:
            What `load` makes of it, and which record of its source that was.

        Raises:
            DataError: The record is bad and bad records are not skipped; or no good one was found among the next
                `MAX_REPLACEMENTS`.
        """
        source, first = self.origin(index)
        if not self.skip_bad_records:
            return self._load(source, first, load), first
        tried = 0
        for record in self._candidates(source, first):
            tried += 1
            if (source, record) not in self._bad:
                try:
                    return self._load(source, record, load), record
                except DataError as error:
                    self._note(source, record, str(error))
        raise DataError(
            f"{self.readers[source].file}: {tried} records in a row from record {first} on cannot be used, "
            f"so this is not a matter of single ones; first: {self._bad[source, first]}"
        )

    def _load(self, source: int, record: int, load: Callable[[Record], T]) -> T:
        reader = self.readers[source]
        with blaming_record(reader.file, record):
            return load(reader[record])

    def _candidates(self, source: int, first: int) -> Iterator[int]:
        """The record itself, then those that may stand in for it."""
        yield first
        chosen = self._chosen[source]
        is_text = self.readers[source].sizes.media[chosen] == 0
        place = int(np.searchsorted(chosen, first))
        alike = np.flatnonzero(is_text == is_text[place])
        alike = np.roll(alike, -int(np.searchsorted(alike, place)))
        yield from chosen[alike[1:MAX_REPLACEMENTS]].tolist()

    def _note(self, source: int, record: int, message: str) -> None:
        self._bad[source, record] = message
        logger.warning("bad record skipped: %s", message)
        if self.bad_records_folder is None:
            return
        entry = {"file": str(self.readers[source].file), "record": record, "error": message}
        self.bad_records_folder.mkdir(parents=True, exist_ok=True)
        name = _BAD_FILES.replace("*", f"{socket.gethostname()}-{os.getpid()}")
        with (self.bad_records_folder / name).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{json.dumps(entry)}\n")  # it may follow half a line that a kill left


class LoadedMixture(Sequence[T], Generic[T]):
    """A mixture with its loading (picklable, where workers are spawned): the data set that a `DataLoader` takes."""

    def __init__(self, mixture: Mixture, load: Callable[[Record], T]) -> None:
        self.mixture = mixture
        self.load = load

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> T:
        return self.mixture.try_load(index, self.load)


class NumberedRows(LoadedMixture[dict[str, Any]]):
    """Rows of a mixture that say which they are: `origin`, the entry and the record of its source that was read."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, record = self.mixture.load_numbered(index, self.load)
        return row | {"origin": (index, record)}


def summarize_bad_records(folder: str | Path) -> list[dict[str, Any]]:
    """What all processes wrote down, each bad record once: dicts of `file`, `record` and `error`, in this order.

    What else stands there is left out.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(Path(folder).glob(_BAD_FILES)):
        for entry in read_json_lines(path):
            if {key: type(value) for key, value in entry.items()} == _ENTRY:
                found.setdefault((entry["file"], entry["record"]), entry)
    return [found[key] for key in sorted(found)]


def _choose(reader: Reader, limit: int | None, generator: np.random.Generator) -> np.ndarray:
    """Ascending record indices."""
    if limit is None or limit >= len(reader):
        return np.arange(len(reader))
    if limit < 1:
        raise SettingsError(f"{reader.file}: a limit of {limit} records; give at least 1, or leave the source out")
    starts = getattr(reader, "group_starts", None)
    if starts is None:
        return np.sort(generator.choice(len(reader), limit, replace=False))
    groups = generator.permutation(len(starts) - 1)  # so that no more of them are read than needed
    return np.sort(np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])[:limit])


def _repeat(reader: Reader, chosen: np.ndarray, weight: float, generator: np.random.Generator) -> np.ndarray:
    """The chosen records as often as the weight says, ascending."""
    if not (math.isfinite(weight) and weight > 0):
        raise SettingsError(f"{reader.file}: a weight of {weight}; give one above 0, or leave the source out")
    if weight * len(chosen) > MAX_ENTRIES:
        raise SettingsError(f"{reader.file}: a weight of {weight} is {weight * len(chosen):.3g} records; lower it")
    whole = int(weight)
    part = round((weight - whole) * len(chosen))
    if not whole and not part:
        raise DataError(f"{reader.file}: weight {weight} of {len(chosen)} records is none; raise it or leave it out")
    return np.sort(np.concatenate([np.repeat(chosen, whole), generator.choice(chosen, part, replace=False)]))
