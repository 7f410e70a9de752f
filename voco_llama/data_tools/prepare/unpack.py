"""Zip and tar archives of strangers unpacked into a folder: what comes out is files inside it, whole ones.

Nothing in an archive is trusted (`members` says what is refused). Permissions, owners and times
are not taken over. A file appears under its own name only when it is whole, so a kill loses nothing: the next call
skips what is there.
"""

import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from voco_llama.data.media.images import resolve_inside
from voco_llama.data_tools.prepare.members import (
    TEMPORARY,
    Member,
    UnpackLimits,
    broken_archives_named,
    read_members,
    refused,
)
from voco_llama.errors import DataError, one_line

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """What a call did: files written, and files that were there already."""

    written: int
    skipped: int


def unpack(
    archive: Path,
    folder: Path,
    limits: UnpackLimits,
    trust_sizes: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Unpacked:
    """Unpack an archive into a folder; again, it does only what is left to do.

    Args:
        archive: A `.zip`, `.tar`, `.tar.gz` or `.tgz`.
        folder: Made if it is not there.
        limits: What the archive may hold.
        trust_sizes: A file that is there with the right size is taken to be the member. Otherwise the CRC of a zip's
            member is compared too.
        progress: Called with the bytes of each member that is done.

    Raises:
        DataError: The archive is broken or holds something that is refused, the disk is full, or the folder holds
            something else in a file's place.
    """
    written = skipped = 0
    parents: set[Path] = set()
    _make_folder(folder, archive)
    temporary = folder / TEMPORARY
    try:
        with closing(read_members(archive, folder, limits)) as members:
            for member in members:
                target = folder / member.name
                if target.parent not in parents:
                    resolve_inside(folder, member.name, str(archive))
                    _make_folder(target.parent, archive)
                    parents.add(target.parent)
                if _is_there(target, member, trust_sizes):
                    skipped += 1
                else:
                    _write(member, temporary, archive)
                    _put(temporary, target, archive)
                    written += 1
                if progress is not None:
                    progress(member.size)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to ({one_line(error)}); make room, or mend its rights") from error
    finally:
        temporary.unlink(missing_ok=True)
    return Unpacked(written, skipped)


def _make_folder(folder: Path, archive: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{folder}: {archive} has a folder there, but it is a file; move it away") from error


def _is_there(target: Path, member: Member, trust_size: bool) -> bool:
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != member.size:
        return False
    if trust_size or member.crc is None:
        return True
    crc = 0
    with target.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc == member.crc


def _write(member: Member, temporary: Path, archive: Path) -> None:
    """Write a member's bytes, never more than declared. zipfile compares the CRC at the end."""
    left = member.size
    with temporary.open("wb") as target:
        for chunk in _chunks(member, archive):
            left -= len(chunk)
            if left < 0:
                break
            target.write(chunk)
    if left:
        raise refused(archive, member.name, f"has not the {member.size} bytes that the archive declares")


def _chunks(member: Member, archive: Path) -> Iterator[bytes]:
    with broken_archives_named(archive), member.open() as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


def _put(temporary: Path, target: Path, archive: Path) -> None:
    try:
        temporary.replace(target)
    except IsADirectoryError as error:
        raise DataError(f"{target}: {archive} has a file there, but it is a folder; move it away") from error
