"""What is in an archive of a stranger: its members, judged before they are handed out.

A name that leaves the folder that is unpacked into, a link, a device, an encrypted member, a name that comes twice, and
sizes that grow out of proportion (a decompression bomb) are refused; in a zip before the first member is handed out, in
a tar, which has no list of its members, when the member is reached.
"""

import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voco_llama.errors import DataError, one_line

HARMLESS_BYTES = 16 << 20
"""What unpacks to no more than this is no decompression bomb, whatever its ratio."""
TEMPORARY = ".unpacking"
"""The one file that is being written, in the folder unpacked into; a kill leaves it, the next call overwrites it."""
MAX_PART_BYTES = 255
"""Longest name of a file or folder that file systems take."""
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")

_DRIVE = re.compile(r"[A-Za-z]:")
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError, RuntimeError)


@dataclass(frozen=True)
class UnpackLimits:
    """What an archive may at most hold.

    Attributes:
        members: Files and folders.
        ratio: Bytes unpacked for each byte packed, over the archive and over each member of a zip.
    """

    members: int
    ratio: float


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: Its path, normalised: relative, with `/`, without `.` and `..`.
        size: In bytes, unpacked, as declared.
        crc: CRC-32 as declared, where the archive has one.
        open: Opens its bytes.
    """

    name: str
    size: int
    crc: int | None
    open: Callable[[], BinaryIO]


def check_structure(archive: Path) -> None:
    """Look whether an archive is whole, as far as that shows without reading it all.

    The list of a zip's members stands at its end, so a download that was cut off has none.

    Raises:
        DataError: It is not.
    """
    with broken_archives_named(archive):
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.infolist()
        else:
            with tarfile.open(archive, "r:*") as opened:
                opened.next()


def checked_name(name: str, archive: Path) -> str:
    """The path of a member, normalised.

    Raises:
        DataError: It leaves the folder that is unpacked into, or is no name of a file.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = (
        not parts
        or name.startswith("/")
        or ".." in parts
        or "\\" in name
        or _DRIVE.match(name)
        or any(ord(character) < ord(" ") for character in name)
        or any(len(os.fsencode(part)) > MAX_PART_BYTES for part in parts)
        or parts[0] == TEMPORARY
    )
    if wrong:
        raise refused(archive, name, "is no path inside the folder it is unpacked into")
    return "/".join(parts)


def read_members(archive: Path, folder: Path, limits: UnpackLimits) -> Iterator[Member]:
    """The files of an archive, in its order; folders are made by the files in them.

    Args:
        archive: A `.zip`, `.tar`, `.tar.gz` or `.tgz`.
        folder: Where they will go: the disk that must have room for what is not there yet.
        limits: What the archive may hold.

    Raises:
        DataError: The archive is broken or of an unknown kind, holds something that is refused, or the disk is full.
    """
    if archive.name.endswith(".zip"):
        return _zip_members(archive, folder, limits)
    if archive.name.endswith(ENDINGS):
        return _tar_members(archive, folder, limits)
    raise DataError(f"{archive}: what kind of archive it is does not show: its name should end in {', '.join(ENDINGS)}")


def _zip_members(archive: Path, folder: Path, limits: UnpackLimits) -> Iterator[Member]:
    """All members are judged before the first is handed out."""
    with broken_archives_named(archive), zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        packed = archive.stat().st_size
        _check_numbers(archive, len(infos), sum(info.file_size for info in infos), packed, limits)
        if sum(info.compress_size for info in infos) > packed:
            raise DataError(f"{archive}: its members overlap, as in a decompression bomb; fetch it from its publisher")
        for info in infos:
            if info.file_size > HARMLESS_BYTES and info.file_size > limits.ratio * info.compress_size:
                raise refused(archive, info.filename, f"unpacks to {info.file_size} bytes, out of proportion")
        named = [(_zip_name(info, archive), info) for info in infos if not _is_root(info.filename)]
        files = [(name, info) for name, info in named if not info.is_dir()]
        _check_names([name for name, _ in files], archive)
        _check_disk(archive, folder, sum(info.file_size for name, info in files if not (folder / name).exists()))
        for name, info in files:
            yield Member(name, info.file_size, info.CRC, lambda info=info: opened.open(info))


def _zip_name(info: zipfile.ZipInfo, archive: Path) -> str:
    if info.flag_bits & 0x1:
        raise refused(archive, info.filename, "is encrypted")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(archive, info.filename, "is a link or a device")
    # `filename` is cut at a zero byte
    return checked_name(info.orig_filename, archive)


def _tar_members(archive: Path, folder: Path, limits: UnpackLimits) -> Iterator[Member]:
    """Members as they come: a tar has no list of them, and reading a packed one twice would take as long again."""
    packed, total, seen = archive.stat().st_size, 0, set()
    with broken_archives_named(archive), tarfile.open(archive, "r:*") as opened:
        for number, info in enumerate(opened, start=1):
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise refused(archive, info.name, "is a link, a device or sparse")
            total += info.size
            _check_numbers(archive, number, total, packed, limits)
            if info.isdir() and _is_root(info.name):
                continue
            name = checked_name(info.name, archive)
            if info.isreg():
                if name in seen:
                    raise refused(archive, name, "comes twice")
                seen.add(name)
                _check_disk(archive, folder, 0 if (folder / name).exists() else info.size)
                yield Member(name, info.size, None, lambda info=info: opened.extractfile(info))
            opened.members = []  # else every header stays in memory


def _is_root(name: str) -> bool:
    """Whether it is the folder itself: `tar -C folder .` opens with `./`."""
    return name in (".", "./")


def _check_numbers(archive: Path, members: int, total: int, packed: int, limits: UnpackLimits) -> None:
    if members > limits.members:
        raise DataError(f"{archive}: it has more than {limits.members} members; raise max_members if that is right")
    if total > HARMLESS_BYTES and total > limits.ratio * packed:
        raise DataError(
            f"{archive}: its {packed} bytes unpack to {total} or more, out of proportion, as a decompression bomb "
            "does; raise max_ratio if that is right"
        )


def _check_names(names: list[str], archive: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refused(archive, name, "comes twice")
        seen.add(name)


def _check_disk(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{folder}: {archive} needs {needed} bytes of disk, {free} are free; make room")


def refused(archive: Path, name: str, why: str) -> DataError:
    """The error for a member that is not taken."""
    return DataError(f"{archive}: member {name[:200]!r} {why}; fetch the archive from its publisher, or take it out")


@contextmanager
def broken_archives_named(archive: Path) -> Iterator[None]:
    """Turn what the archive libraries raise into one line; errors of the caller pass through."""
    try:
        yield
    except _BROKEN as error:
        raise DataError(
            f"{archive}: broken, perhaps a download that was cut off ({one_line(error)}); fetch it again"
        ) from error
