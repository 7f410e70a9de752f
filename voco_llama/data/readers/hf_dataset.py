"""Parquet files and sets of the Hugging Face `datasets` library, as map-style records.

`file` is a Parquet, Arrow or JSON file, a folder of Parquet files (a copy of a set on the hub, say), a folder that
`save_to_disk` wrote, or a set's name on the hub, `owner/name`. The library keeps an Arrow copy of Parquet and of hub
sets in its own cache (`HF_DATASETS_CACHE`), which is memory-mapped: opening it again is fast, and nothing of it is
copied to worker processes. `voco_llama.data.readers.parquet_stream` makes no copy.

Only data is read: a set that brings code of its own is refused.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from voco_llama.data.readers.table_records import TableReader
from voco_llama.errors import DataError, one_line
from voco_llama.hub import is_hub_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import DatasetBuilder

T = TypeVar("T")

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
"""Endings of a single file, and what of the library reads it."""

ROWS_AT_ONCE = 10_000
"""Rows whose text lengths are counted together."""


class HfDataset(TableReader):
    """See the module; arguments as those of `TableReader`, `file` as said there."""

    def _open(self, split: str, name: str | None) -> list[str]:
        import datasets

        if is_saved(self.file):
            loaded = reported(self.file, lambda: datasets.load_from_disk(str(self.file)))
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise DataError(f"{self.file}: no split {split!r}; it has: {', '.join(loaded)}")
                loaded = loaded[split]
        else:
            builder = find_builder(self.file, split, name)
            reported(self.file, builder.download_and_prepare)
            loaded = reported(self.file, lambda: builder.as_dataset(split=split))
        self._dataset = loaded.with_format("arrow")
        return self._dataset.column_names

    def __len__(self) -> int:
        return len(self._dataset)

    def _row(self, index: int, columns: list[str]) -> "pa.Table":
        return self._dataset[index].select(columns)

    def _tables(self, columns: list[str]) -> "Iterator[pa.Table]":
        return self._dataset.select_columns(columns).iter(ROWS_AT_ONCE)


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
        kind, files = BUILDERS[file.suffix], {"train": str(file)}
        return reported(file, lambda: datasets.load_dataset_builder(kind, data_files=files))
    if not file.is_dir() and not is_hub_name(file):
        raise DataError(f"{file}: no such file or folder; check the path of the data set")
    builder = reported(file, lambda: datasets.load_dataset_builder(str(file), name))
    kind = type(builder).__module__.split(".")[-1]
    if kind not in BUILDERS.values() and kind != "cache":
        raise DataError(
            f"{file}: a set of kind {kind!r}; only {', '.join(sorted(set(BUILDERS.values())))} are read; convert it"
        )
    known = builder.config.data_files
    if known is not None and split not in known:
        raise DataError(f"{file}: no split {split!r}; it has: {', '.join(known)}")
    return builder


def reported(file: str | Path, read: Callable[[], T]) -> T:
    """Runs a reading function of the library; its errors become one line.

    Raises:
        DataError: It failed.
    """
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        return read()
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError, ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({_reason(error)}); check the path, or fetch it again") from error


def _reason(error: Any) -> str:
    """The library wraps what happened in a general message."""
    return one_line(error.__cause__ or error)
