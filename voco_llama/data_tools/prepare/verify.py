"""Whether a downloaded file is the published one: its size, its checksum, and whether it is whole.

A checksum of tens of gigabytes takes minutes, so a state file remembers it until the file's size or time changes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voco_llama.data_tools.prepare.members import check_structure
from voco_llama.data_tools.prepare.sets import Part
from voco_llama.data_tools.prepare.unpack import CHUNK_BYTES
from voco_llama.errors import DataError, one_line
from voco_llama.files import write_atomically

logger = logging.getLogger(__name__)

STATE_FILE = ".voco-llama-prepare.json"
END_BYTES = 64
"""Read from either end of a JSON file to see that it is whole."""


class State:
    """What is known of files from earlier runs, as long as they have not changed since.

    Attributes:
        file: Where it is kept. It may be lost or damaged: then everything is looked at again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = {}
        except (OSError, ValueError) as error:
            logger.warning("%s: cannot be read (%s); files are looked at again", file, one_line(error))
            known = {}
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def get(self, file: Path, key: str) -> Any:
        """A fact of a file, or None if there is none or the file changed since."""
        entry = self._known.get(str(file.resolve()))
        if not isinstance(entry, dict) or entry.get("stamp") != _stamp(file):
            return None
        return entry.get(key)

    def put(self, file: Path, key: str, value: Any) -> None:
        """Remember a fact of a file as it is now; facts of how it was are forgotten."""
        name, stamp = str(file.resolve()), _stamp(file)
        entry = self._known.get(name)
        if not isinstance(entry, dict) or entry.get("stamp") != stamp:
            entry = self._known[name] = {"stamp": stamp}
        entry[key] = value
        self._write()

    def move(self, old: Path, new: Path) -> None:
        """A file was renamed: what is known of it goes with it."""
        entry = self._known.pop(str(old.resolve()), None)
        if entry is not None:
            self._known[str(new.resolve())] = entry
            self._write()

    def _write(self) -> None:
        try:
            write_atomically(self.file, json.dumps(self._known, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            logger.warning("%s: cannot be written (%s); the next run hashes again", self.file, one_line(error))


def verify(file: Path, part: Part, state: State, progress: Callable[[int], None] | None = None) -> str:
    """Compare a file with what is published of it.

    Args:
        file: It is there.
        part: What is published.
        state: Where checksums are remembered.
        progress: Called with the bytes of each chunk that is hashed.

    Returns:
        How far it was compared, in words.

    Raises:
        DataError: It is not the published file, or not whole.
    """
    size = file.stat().st_size
    if part.size is not None and size != part.size:
        short = "a download that was cut off" if size < part.size else "another version"
        raise DataError(f"{file}: {size} bytes, published are {part.size} ({short}); fetch it again")
    if part.unpack:
        check_structure(file)
    elif file.suffix == ".json":
        _check_json_ends(file, size)
    if part.checksum is None:
        return "size as published, no checksum is known" if part.size else "whole, no exact size or checksum is known"
    algorithm, published = part.checksum
    found = state.get(file, algorithm)
    if found is None:
        found = _hash(file, algorithm, progress)
        state.put(file, algorithm, found)
    if found != published:
        raise DataError(f"{file}: its {algorithm} is {found}, published is {published}; fetch it again")
    return f"size and {algorithm} as published" if part.size else f"{algorithm} as published"


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _hash(file: Path, algorithm: str, progress: Callable[[int], None] | None) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def _check_json_ends(file: Path, size: int) -> None:
    with file.open("rb") as opened:
        start = opened.read(END_BYTES).lstrip()
        opened.seek(max(0, size - END_BYTES), os.SEEK_SET)
        end = opened.read().rstrip()
    if not (start.startswith(b"[") and end.endswith(b"]")):
        raise DataError(f"{file}: no whole JSON list, perhaps a download that was cut off; fetch it again")
