r"""Images and clips inside zip and tar files, read in place.

An archive's table of members is read once by `zipfile` or `tarfile`, packed into arrays (sorted by a hash of the name)
and kept (`kept_tables`): 600,000 members take some 40 MB that all processes share. A member is then read by seeking;
no file stays open, so archives go to worker processes as they are.

Nothing is unpacked, so no name can lead out of a folder; names that would (`../a`, `/a`, `C:a`, `a\b`) are not in the
table all the same, nor are links, folders and devices.
"""

import hashlib
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from voco_llama.data.kept_tables import Arrays, open_table
from voco_llama.data.media.stored import StoredFile
from voco_llama.errors import DataError, refused_as

MAX_MEMBER_BYTES = 2**30
"""A larger member is not read: members are held in memory."""

ENDINGS = (".zip", ".tar")
COMPRESSED_TAR_ENDINGS = (".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_IN_TAR = 255
"""Stands for the compression method of a tar's member: none, and no checksum either."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # of a member's flags in a zip
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field (APPNOTE 4.3.7)
_LOCAL_SIGNATURE = b"PK\3\4"
_DRIVE = re.compile(r"[A-Za-z]:")


def is_archive_name(path: str | Path) -> bool:
    """Whether a path ends as an archive does, one that cannot be read in place included."""
    return str(path).lower().endswith((*ENDINGS, *COMPRESSED_TAR_ENDINGS))


def member_name(name: str) -> str | None:
    """A name as tables have it, without `.` and doubled `/`; None for one that leads out of a folder."""
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts) if parts and ".." not in parts else None


@dataclass(frozen=True)
class ArchiveMember(StoredFile):
    """A file in an archive.

    Attributes:
        archive: The archive.
        member: Its name there.
        offset: Byte at which its local header (zip) or its data (tar) begins.
        stored_bytes: What it takes in the archive.
        num_bytes: What it takes when read.
        method: Of compression, as zip counts them; `_IN_TAR`.
        checksum: CRC-32 of what is read; of no meaning in a tar.
    """

    archive: Path
    member: str
    offset: int
    stored_bytes: int
    num_bytes: int
    method: int = _IN_TAR
    checksum: int = 0

    @property
    def name(self) -> str:
        """Its last part, as `Path.name`."""
        return self.member.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    def open(self) -> BinaryIO:
        """Its bytes, in memory.

        Raises:
            DataError: The archive is gone or changed, the member is damaged or larger than `MAX_MEMBER_BYTES`.
        """
        if max(self.stored_bytes, self.num_bytes) > MAX_MEMBER_BYTES:
            raise DataError(
                f"{self}: takes {max(self.stored_bytes, self.num_bytes)} bytes, and at most {MAX_MEMBER_BYTES} are read"
                " from inside an archive; unpack it, or take the record out"
            )
        with refused_as(DataError, self, "fetch the archive again"):
            data = self._stored()
            if self.method == zipfile.ZIP_DEFLATED:  # one byte more than it should have, never all that it might
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.num_bytes + 1)
        if len(data) != self.num_bytes or (self.method != _IN_TAR and zlib.crc32(data) != self.checksum):
            raise DataError(f"{self}: damaged, it is not what the archive's own table says; fetch the archive again")
        return io.BytesIO(data)

    def _stored(self) -> bytes:
        with self.archive.open("rb") as stream:
            stream.seek(self.offset)
            if self.method != _IN_TAR:
                signature, *lengths = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
                if signature != _LOCAL_SIGNATURE:
                    raise DataError(f"{self}: is not where it was; fetch the archive again, or start again")
                stream.seek(sum(lengths), io.SEEK_CUR)
            return stream.read(self.stored_bytes)


class Archive:
    """A zip or an uncompressed tar, whose table of members is kept in `index_folder`; None = nowhere.

    Raises:
        DataError: It is missing, cut short, encrypted, compressed in a way that is not read, or holds no files.
    """

    def __init__(self, path: Path, index_folder: Path | None = None) -> None:
        self.path = path
        if path.name.lower().endswith(COMPRESSED_TAR_ENDINGS):
            raise DataError(
                f"{path}: a compressed tar cannot be read in place; unpack it, or pack it as .zip or uncompressed .tar"
            )
        if not path.is_file():
            raise DataError(f"{path}: no such file; fetch the archive, or correct its path")
        self._table = open_table(path, "archive", index_folder, lambda: _read_members(path))

    def __len__(self) -> int:
        return len(self._table["hashes"])

    def names(self) -> Iterator[str]:
        """All members' names, in no particular order."""
        return (self._name(row) for row in range(len(self)))

    def find(self, name: str) -> ArchiveMember | None:
        """The member of a name as `member_name` gives it (of several the last), or None."""
        digest = _hash(name.encode(*_NAME_CODING))
        begin, end = (int(np.searchsorted(self._table["hashes"], digest, side)) for side in ("left", "right"))
        for row in reversed(range(begin, end)):
            if self._name(row) == name:
                return ArchiveMember(self.path, name, *(int(self._table[column][row]) for column in _COLUMNS))
        return None

    def _name(self, row: int) -> str:
        begin, end = self._table["name_begin"][row : row + 2]
        return self._table["names"][begin:end].tobytes().decode(*_NAME_CODING)


_SIZES = ("offset", "stored_bytes", "num_bytes")
_COLUMNS = dict.fromkeys(_SIZES, np.int64) | {"method": np.uint8, "checksum": np.uint32}
"""Of the table and of `ArchiveMember`: what names, and their hashes, come with."""

_NAME_CODING = ("utf-8", "surrogateescape")


def _hash(name: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def _read_members(path: Path) -> Arrays:
    read = _zip_members if path.name.lower().endswith(".zip") else _tar_members
    with refused_as(DataError, path, "it is damaged or was not fetched to its end; fetch it again"):
        table = _pack(read(path))
    if not len(table["hashes"]):
        raise DataError(f"{path}: holds no files; fetch it again, or leave it out")
    if any(table[column].min() < 0 for column in _SIZES) or (
        (table["offset"] + table["stored_bytes"]).max() > path.stat().st_size
    ):
        raise DataError(f"{path}: damaged or cut short, members lie outside of it; fetch it again")
    return table


def _zip_members(path: Path) -> Iterator[ArchiveMember]:
    with zipfile.ZipFile(path) as opened:
        for info in opened.infolist():
            name = member_name(info.filename)
            if name is None or info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                continue
            if info.flag_bits & _ENCRYPTED:
                raise DataError(f"{path}: {info.filename!r} in it is encrypted; unpack the archive, or pack it without")
            if info.compress_type not in _METHODS:
                raise DataError(
                    f"{path}: {info.filename!r} in it is compressed by method {info.compress_type}; only stored and"
                    " deflated ones are read in place: unpack the archive, or pack it anew"
                )
            sizes = info.compress_size, info.file_size
            yield ArchiveMember(path, name, info.header_offset, *sizes, info.compress_type, info.CRC)


def _tar_members(path: Path) -> Iterator[ArchiveMember]:
    with tarfile.open(path, "r:") as opened:
        end = 0
        while (info := opened.next()) is not None:
            if opened.offset <= end:  # a header that leads back would be read for ever
                break
            end = opened.offset
            opened.members.clear()  # else all are held until the end
            name = member_name(info.name)
            if name is None or not info.isreg():
                continue
            if info.issparse():
                raise DataError(f"{path}: {info.name!r} in it is sparse, which cannot be read in place; unpack it")
            yield ArchiveMember(path, name, info.offset_data, info.size, info.size)
    with path.open("rb") as stream:  # tarfile ends without a word at a header that it cannot read
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path}: damaged or cut short at byte {end}; fetch it again")


def _pack(members: Iterable[ArchiveMember]) -> Arrays:
    names, numbers = [], array("q")
    for member in members:
        names.append(member.member.encode(*_NAME_CODING))
        numbers.extend(getattr(member, column) for column in _COLUMNS)
    hashes = np.array([_hash(name) for name in names], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    names = [names[row] for row in order]
    columns = np.asarray(numbers).reshape(-1, len(_COLUMNS))[order].T
    return {
        "hashes": hashes[order],
        **{name: column.astype(_COLUMNS[name]) for name, column in zip(_COLUMNS, columns, strict=True)},
        "name_begin": np.cumsum([0, *map(len, names)], dtype=np.int64),
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
    }
