"""Where the bytes of an image or a clip lie: in a file of its own, or inside another one.

A record names its media by `MediaFile`: a `Path`, or a `StoredFile` (a member of an archive, a cell of a table). Both
are small and picklable, have a `name`, and read well in messages (`str`); `load_image` and `read_frames` take either.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO


class StoredFile(ABC):
    """A file that lies inside another one; equal and hashable by where it lies, `str()` says where for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its last part, as `Path.name`."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Its bytes, seekable, in memory or on disk.

        Raises:
            DataError: It is not there, cannot be read, or is larger than may be held in memory.
        """


MediaFile = Path | StoredFile
