"""Files written aside and renamed: a reader sees the old one or the whole new one, and a kill leaves no half.

A folder is worked in by one process at a time (`locked`), and a disk that takes no more is one line (`writing`), as is
every fault of a file of JSON that is read.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from voco_llama.errors import CheckpointError, SettingsError, VoCoError, refused_as

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Of a file system that knows none."""
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
NO_FOLDER = (errno.ENOENT, errno.EEXIST)
"""Of a folder that cannot be made, or a link to nothing in its place."""
_NO_ROOM_TEXTS = re.compile(
    "|".join(
        [*(os.strerror(number) for number in NO_ROOM), "PytorchStreamWriter failed", "unexpected pos", "iostream error"]
    )
)
"""How safetensors, torch, and a `DataLoader` of its workers say it, in errors without a number."""

_held: list[TextIO] = []
"""Lock files of this process."""


@contextmanager
def locked(file: Path, remains: bool = True) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; its text, the process id, is for people.

    The lock is the operating system's (`flock`), so that it ends with the process that holds it, however that ends.
    Without `remains` the file is removed afterwards.

    Raises:
        SettingsError: Another process holds it, or it cannot be written.
    """
    with writing(file.parent, "name another folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _opened_lock(file)
    with lock as opened:
        opened.truncate(0)
        opened.write(f"{os.getpid()}\n")
        opened.flush()
        _held.append(opened)
        try:
            yield
        finally:
            if opened in _held:
                _held.remove(opened)
                if not remains:
                    file.unlink(missing_ok=True)


def lock_holder(file: Path) -> str | None:
    """The text of a lock file that a process holds; None: nobody does."""
    if not file.is_file():
        return None
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return opened.read().strip() or "unknown"
    except OSError:
        pass
    return None


def _opened_lock(file: Path) -> TextIO:
    while True:
        opened = file.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                opened.seek(0)
                process = opened.read().strip() or "unknown"
                opened.close()
                if not isinstance(error, BlockingIOError):
                    raise
                raise SettingsError(
                    f"process {process} is at work in {file.parent} (it holds {file.name}): wait for it, or stop it"
                ) from error
        if file.exists() and os.path.samestat(os.fstat(opened.fileno()), file.stat()):
            return opened
        opened.close()  # who held it has just removed it


def _leave_locks() -> None:
    """A data worker would else hold its parent's lock on after that was killed."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or make a folder at; it takes the name `path` at the end.

    What was written is removed if the block raises. The folder around is made if it is missing. A folder takes the
    place of an empty one only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink(missing_ok=True)
        raise


def settle(path: Path, recursively: bool = False) -> None:
    """Wait until a file, or the names in a folder, are on the disk; `recursively`: and what is below."""
    for each in (path, *(path.rglob("*") if recursively else ())):
        opened = os.open(each, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_atomically(file: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_aside(file) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(file: Path, error: type[VoCoError] = CheckpointError, advice: str = "") -> dict[str, Any]:
    """A JSON object from a file that anybody may have written.

    Raises:
        VoCoError: Of the type `error`: the file is missing, not UTF-8, no JSON or no object. `advice` ends the line.
    """
    with refused_as(error, file, advice):
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value


def json_if_whole(file: Path) -> Any:
    """What a file of JSON holds; None: it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a log, one a line; half a line that a kill left is passed over."""
    for line in file.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def append_line(file: Path, entry: dict[str, Any]) -> None:
    """Add an object to a log of JSON lines, on a line of its own also after half a line that a kill left."""
    with file.open("ab+") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - 1, 0))
        torn = stream.read(1) not in (b"", b"\n")
        stream.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


@contextmanager
def writing(folder: Path, advice: str) -> Iterator[None]:
    """Around work that writes below a folder: a disk that is full, or not ours to write to, is one line.

    Raises:
        SettingsError: `<where> cannot be written (<why>): <advice>`.
    """
    try:
        yield
    except VoCoError:
        raise
    except Exception as error:
        if (refusal := _refusal(error, folder)) is None:
            raise
        where, why = refusal
        raise SettingsError(f"{where} cannot be written ({why}): {advice}") from error


def _refusal(error: BaseException, folder: Path) -> tuple[str, str] | None:
    """Where a disk did not take what was written, and why not; None: the error is about something else."""
    name = getattr(error, "filename", None)
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_ROOM:
        return str(name or folder), os.strerror(number)
    if number in (*NOT_ALLOWED, *NO_FOLDER) and name is not None:
        path, root = Path(os.fsdecode(name)).absolute(), folder.absolute()
        if root.is_relative_to(path) or (number in NOT_ALLOWED and path.is_relative_to(root)):
            return str(name), os.strerror(number)
    if found := _NO_ROOM_TEXTS.search(str(error)):
        return str(folder), found[0]
    cause = error.__cause__ or error.__context__
    return None if cause is None else _refusal(cause, folder)


def check_writable(key: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to; nothing is written.

    Raises:
        SettingsError: It, or what it would lie in, is a file or may not be written to.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise SettingsError(f"{key}: {there} is a file, not a folder: name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SettingsError(f"{key}: {there} cannot be written to: name a folder elsewhere")
