"""Where the bytes of an image or a clip lie: in a file of its own, or inside another one.

A record names its media by `MediaFile`: a `Path`, or a `StoredFile` (a member of an archive, a cell of a table). Both
are small and picklable, have a `name`, and read well in messages (`str`); `load_image` and `read_frames` take either.
"""

import hashlib
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO


class StoredFile(ABC):
    """A file that lies inside another one; equal and hashable by where it lies, `str()` says where for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its last part, as `Path.name`."""

    @property
    def identity(self) -> str:
        """The same for the same image or clip, another one for any other."""
        return str(self)

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, seekable, in memory or on disk.

        Raises:
            DataError: It is not there, cannot be read, or is larger than may be held in memory.
        """


MediaFile = Path | StoredFile


def location_hash(*names: str | bytes) -> int:
    """64 bits of what says where something lies, as a signed number that is not 0; the order of names counts."""
    coded = (name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass") for name in names)
    digest = hashlib.blake2b(b"\0".join(coded), digest_size=8, usedforsecurity=False).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def content_key(file: MediaFile, algorithm: str = "sha256") -> str:
    """The hexadecimal hash of a file's bytes: the same for the same content, wherever it lies and whatever its name.

    That of a `Path` is remembered while the process runs, until the file's size or time changes.

    Args:
        file: The file; it is read in blocks.
        algorithm: Of `hashlib`.

    Raises:
        OSError: A `Path` cannot be read.
        DataError: A `StoredFile` cannot.
    """
    if isinstance(file, StoredFile):
        return _hash(file.open(), algorithm)
    state = file.stat()
    return _file_hash(file.absolute(), algorithm, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2**16)
def _file_hash(file: Path, algorithm: str, size: int, modified: int) -> str:
    """Size and time are what a remembered hash holds for."""
    return _hash(file.open("rb"), algorithm)


def _hash(opened: BinaryIO, algorithm: str) -> str:
    with opened as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
