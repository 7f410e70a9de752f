"""Tables of arrays that take long to make and are kept on disk: where records lie in a file, what an archive holds.

    <index folder>/<file>-<hash of its path and the kind of table>-<hash of its size, its time and our version>/
        table.json      checksum of each array's file
        <array>.npy     memory-mapped, so that all processes share one copy

An entry gets its name once it is whole. One that is damaged, or of a file that changed since, is made again. An index
folder that cannot be written costs time, nothing else: the table is then made, and held in memory, by each process.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock

from voco_llama.errors import DataError, refused_as
from voco_llama.files import read_json, written_aside

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
"""Raised when the arrays of some kind of table get another meaning."""

SMALLEST_KEPT = 2**24
"""Bytes of a file from which on its table is kept; smaller ones are read through in less than a second."""

_CHECKSUMS = "table.json"
_SHOWN_NAME = 40  # characters of the file's name in its entry's

Arrays = dict[str, np.ndarray]


class Table(dict[str, np.ndarray]):
    """Arrays by name, in memory; or memory-mapped from an entry, and then pickled as the entry's path."""

    entry: Path | None = None

    def __reduce__(self) -> tuple:
        return (Table, (dict(self),)) if self.entry is None else (_map, (self.entry, tuple(self)))


def open_table(file: Path, kind: str, index_folder: Path | None, make: Callable[[], Arrays]) -> Table:
    """The table of a file: the one that is kept, or a new one, which is then kept.

    Args:
        file: What the table is of.
        kind: What is in the table; one file may have tables of several kinds.
        index_folder: Where tables are kept; None = nowhere.
        make: Reads the file. Of several processes that ask at the same time one does, the others wait.

    Raises:
        DataError: What `make` raises.
    """
    state = file.stat()
    if index_folder is None or state.st_size < SMALLEST_KEPT:
        return Table(make())
    prefix = f"{file.name[:_SHOWN_NAME]}-{_digest(f'{file.resolve()} {kind}')}"
    entry = index_folder.absolute() / f"{prefix}-{_digest(f'{state.st_size} {state.st_mtime_ns} {FORMAT_VERSION}')}"
    if table := _read(entry):
        return table
    with _locked(index_folder / f".{prefix}.lock") as is_locked:
        if is_locked and (table := _read(entry)):
            return table
        logger.info("%s: reading it through once", file)
        arrays = make()
        if is_locked:
            try:
                _write(entry, prefix, arrays)
                return _read(entry) or Table(arrays)
            except OSError as error:
                _warn(index_folder, error)
        return Table(arrays)


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _warn(folder: Path, error: Exception) -> None:
    logger.warning("index folder %s cannot be written (%s): large files are read through at each start", folder, error)


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Holds a lock, waiting for it; False where there can be none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file).acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        _warn(file.parent, error)
        yield False
        return
    with lock:
        yield True


def _map(entry: Path, names: Iterable[str]) -> Table:
    with refused_as(DataError, entry, "gone or damaged, its file changed since it was opened; start again"):
        table = Table({name: np.load(_array_file(entry, name), mmap_mode="r") for name in names})
    table.entry = entry
    return table


def _array_file(entry: Path, name: str) -> Path:
    return entry / f"{name}.npy"


def _checksum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, mode="r"))


def _read(entry: Path) -> Table | None:
    """The table of an entry; None where there is none, or a damaged one."""
    if not entry.is_dir():
        return None
    try:
        with refused_as(DataError, entry):
            checksums = read_json(entry / _CHECKSUMS, DataError)
            if checksums == {name: _checksum(_array_file(entry, name)) for name in checksums}:
                return _map(entry, checksums)
        found = "wrong checksum"
    except DataError as error:
        found = str(error)
    logger.warning("%s: damaged (%s): it is made again", entry, found)
    return None


def _write(entry: Path, prefix: str, arrays: Arrays) -> None:
    """Writes an entry in place of all others of its file and kind; their readers keep what they have mapped."""
    for pattern in (f"{prefix}-*", f".{prefix}-*"):  # the second: what a killed process left
        for old in entry.parent.glob(pattern):
            shutil.rmtree(old, ignore_errors=True)  # on a network a file that is mapped elsewhere may stay
    with written_aside(entry) as folder:
        folder.mkdir()
        for name, array in arrays.items():
            np.save(_array_file(folder, name), array)
        checksums = {name: _checksum(_array_file(folder, name)) for name in arrays}
        (folder / _CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
