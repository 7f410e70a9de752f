"""Parquet files read in place, a row group at a time: no copy on disk, and bounded memory.

Rows are asked for by index, as of any reader; that is fast only where they are asked for nearly in order, which is what
`voco_llama.training.sampling.StreamSampler` does. Footers say which row is where, so a place in the middle of an epoch
is found without reading what comes before it. (The library's own `IterableDataset` reads everything up to there again,
and loses what its shuffle buffer held.)
"""

from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from voco_llama.data.readers.hf_dataset import find_builder, is_saved, reported
from voco_llama.data.readers.record_files import Sizes
from voco_llama.data.readers.table_records import TableReader, same_names, text_bytes, text_marks
from voco_llama.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetStream(TableReader):
    """Arguments as those of `TableReader`.

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
            footer, file_names = reported(file, lambda file=file: _footer(file))
            names.append(file_names)
            for group in range(footer.num_row_groups):
                self._groups.append((number, group))
                sizes.append(footer.row_group(group).num_rows)
        if not same_names(names):
            raise DataError(f"{self.file}: its Parquet files have different columns; keep those of one set together")
        self.group_starts = np.cumsum(sizes)
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        return names[0]

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}  # each process reads for itself

    def _row(self, index: int, columns: list[str]) -> "pa.Table":
        group = int(np.searchsorted(self.group_starts, index, side="right")) - 1
        return self._group(group).select(columns).slice(index - int(self.group_starts[group]), 1)

    def _group(self, group: int) -> "pa.Table":
        """A row group's needed columns; those used last are held."""
        if group not in self._held:
            columns = (self.id_column, self.text_column, self.image_column, self.video_column)
            self._held[group] = self._read(group, [column for column in columns if column is not None])
            most = self.shuffle_buffer + int(np.diff(self.group_starts).max())
            while len(self._held) > 1 and sum(map(len, self._held.values())) > most:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]

    def _read(self, group: int, columns: list[str]) -> "pa.Table":
        number, place = self._groups[group]
        file = self._files[number]
        table = reported(file, lambda: _read_group(file, place, columns))
        if len(table) != self.group_starts[group + 1] - self.group_starts[group]:
            raise DataError(f"{file}: changed since it was opened; start again")
        return table

    def _tables(self, columns: list[str]) -> "Iterator[pa.Table]":
        for group in range(len(self._groups)):
            yield self._read(group, columns)

    @cached_property
    def sizes(self) -> Sizes:
        """How much text there is, and how many images it speaks of: the image column is not read."""
        texts = [table[self.text_column] for table in self._tables([self.text_column])]
        characters = np.concatenate([text_bytes(text) for text in texts])
        if self.form == "conversations":
            media = np.concatenate([text_marks(text) for text in texts])
        else:
            media = np.full(len(self), self.image_column is not None)
        return Sizes(characters.astype(np.int32), media.astype(np.int32))


def _parquet_file(file: str) -> Any:
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(file)
    return pq.ParquetFile(path, filesystem=filesystem)


def _footer(file: str) -> tuple[Any, list[str]]:
    with _parquet_file(file) as opened:
        return opened.metadata, opened.schema_arrow.names


def _read_group(file: str, place: int, columns: list[str]) -> "pa.Table":
    with _parquet_file(file) as opened:
        return opened.read_row_group(place, columns=columns)
