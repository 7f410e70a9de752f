"""Parquet files and sets of the Hugging Face `datasets` library, as map-style records (`HfDataset`) or read in place.

`file` is a Parquet, Arrow or JSON file, a folder of Parquet files (a copy of a set on the hub, say), a folder that
`save_to_disk` wrote, or a set's name on the hub, `owner/name`. The library keeps an Arrow copy of Parquet and of hub
sets in its own cache (`HF_DATASETS_CACHE`), which is memory-mapped: opening it again is fast, and nothing of it is
copied to worker processes. Only data is read: a set that brings code of its own is refused.

`ParquetStream` reads a row group at a time: no copy on disk, and bounded memory. Rows are asked for by index, as of any
reader; that is fast only where they are asked for nearly in order, which is what
`voco_llama.training.sampling.StreamSampler` does. Footers say which row is where, so a place in the middle of an epoch
is found without reading what comes before it. (The library's own `IterableDataset` reads everything up to there again,
and loses what its shuffle buffer held.)
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voco_llama.data.readers.table_records import TableReader, count_in
from voco_llama.data.records import Sizes
from voco_llama.errors import DataError, SettingsError, refused_as
from voco_llama.hub import is_hub_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import DatasetBuilder

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
"""Endings of a single file, and what of the library reads it."""

ROWS_AT_ONCE = 10_000
"""Rows whose text lengths are counted together."""


class HfDataset(TableReader):
    """See the module; arguments as those of `TableReader`."""

    def _open(self, split: str, name: str | None) -> list[str]:
        import datasets

        if is_saved(self.file):
            with reported(self.file):
                loaded = datasets.load_from_disk(str(self.file))
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise DataError(f"{self.file}: no split {split!r}; it has: {', '.join(loaded)}")
                loaded = loaded[split]
        else:
            builder = find_builder(self.file, split, name)
            with reported(self.file):
                builder.download_and_prepare()
                loaded = builder.as_dataset(split=split)
        self._dataset = loaded.with_format("arrow")
        return self._dataset.column_names

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int, columns: list[str]) -> "pa.Table":
        with reported(self.file):
            return self._dataset[index].select(columns)

    def _column(self, name: str) -> "Iterator[pa.ChunkedArray]":
        with reported(self.file):
            yield from (table[name] for table in self._dataset.select_columns([name]).iter(ROWS_AT_ONCE))


def is_saved(file: Path) -> bool:
    """Whether it is a folder that `save_to_disk` wrote."""
    return (file / "state.json").is_file() or (file / "dataset_dict.json").is_file()


def find_builder(file: Path, split: str, name: str | None) -> "DatasetBuilder":
    """What of the library reads a file, a folder or a set of the hub; nothing but its outline is read yet.

    Raises:
        DataError: There is no such thing, no such split, or it is of a kind that is not read.
    """
    import datasets

    if file.is_file():
        if file.suffix not in BUILDERS:
            raise DataError(f"{file}: not a table that can be read ({', '.join(BUILDERS)}); name another file")
        with reported(file):
            return datasets.load_dataset_builder(BUILDERS[file.suffix], data_files={"train": str(file)})
    if not file.is_dir() and not is_hub_name(file):
        raise DataError(f"{file}: no such file or folder; check the path of the data set")
    with reported(file):
        builder = datasets.load_dataset_builder(str(file), name)
    kind = type(builder).__module__.split(".")[-1]
    if kind not in BUILDERS.values() and kind != "cache":
        raise DataError(
            f"{file}: a set of kind {kind!r}; only {', '.join(sorted(set(BUILDERS.values())))} are read; convert it"
        )
    known = builder.config.data_files
    if known is not None and split not in known:
        raise DataError(f"{file}: no split {split!r}; it has: {', '.join(known)}")
    return builder


@contextmanager
def reported(file: str | Path) -> Iterator[None]:
    """Makes the library's errors a `DataError` of one line."""
    from datasets.exceptions import DatasetsError

    with refused_as(DataError, file, "check the path, or fetch it again"):
        try:
            yield
        except DatasetsError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error  # what happened, which the library wraps in a general message


class ParquetStream(TableReader):
    """See the module; arguments as those of `TableReader`.

    `file` is a Parquet file, a folder of them, or a set of Parquet files on the hub, which are then read over the
    network and never stored.

    Attributes:
        group_starts: `[row groups + 1]` int64, the first row of each row group, and the number of rows.
        shuffle_buffer: Rows from whose range rows are asked for at the same time. So many, and besides those of one
            row group, are held in memory in each process.
    """

    shuffle_buffer = 0

    def _open(self, split: str, name: str | None) -> list[str]:
        if is_saved(self.file):
            raise SettingsError(
                f"{self.file}: written by save_to_disk, so it is memory-mapped and needs no streaming; set"
                " data.streaming=false"
            )
        builder = find_builder(self.file, split, name)
        if type(builder).__module__.split(".")[-1] != "parquet":
            raise SettingsError(
                f"{self.file}: only Parquet files can be streamed, not what is in the library's cache; set"
                " data.streaming=false"
            )
        self._files = [str(file) for file in builder.config.data_files[split]]
        self._groups: list[tuple[int, int]] = []
        names, sizes = [], [0]
        for number, file in enumerate(self._files):
            with reported(file), _parquet_file(file) as opened:
                footer = opened.metadata
                names.append(opened.schema_arrow.names)
            for group in range(footer.num_row_groups):
                self._groups.append((number, group))
                sizes.append(footer.row_group(group).num_rows)
        if len(set(map(frozenset, names))) != 1:
            raise DataError(f"{self.file}: its Parquet files have different columns; keep those of one set together")
        self.group_starts = np.cumsum(sizes)
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        return names[0]

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}  # each process reads for itself

    def row(self, index: int, columns: list[str]) -> "pa.Table":
        group = int(np.searchsorted(self.group_starts, index, side="right")) - 1
        return self._group(group).select(columns).slice(index - int(self.group_starts[group]), 1)

    def _group(self, group: int) -> "pa.Table":
        """A row group's needed columns; those used last are held."""
        if group not in self._held:
            self._held[group] = self._read(group, self.columns)
            most = self.shuffle_buffer + int(np.diff(self.group_starts).max())
            while len(self._held) > 1 and sum(map(len, self._held.values())) > most:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]

    def _read(self, group: int, columns: list[str]) -> "pa.Table":
        number, place = self._groups[group]
        file = self._files[number]
        with reported(file):
            table = _read_group(file, place, columns)
        if len(table) != self.group_starts[group + 1] - self.group_starts[group]:
            raise DataError(f"{file}: changed since it was opened; start again")
        return table

    def _column(self, name: str) -> "Iterator[pa.ChunkedArray]":
        return (self._read(group, [name])[name] for group in range(len(self._groups)))

    @cached_property
    def sizes(self) -> Sizes:
        """How much text there is, and how many images it speaks of, not which: the image column is not read."""
        texts = list(self._column(self.text_column))
        media = np.full(len(self), self.image_column is not None, np.int32)
        media = count_in(texts, "marks") if self.form == "conversations" else media
        return Sizes(count_in(texts, "bytes"), media, None)


def _parquet_file(file: str) -> Any:
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(file)
    return pq.ParquetFile(path, filesystem=filesystem)


def _read_group(file: str, place: int, columns: list[str]) -> "pa.Table":
    with _parquet_file(file) as opened:
        return opened.read_row_group(place, columns=columns)
