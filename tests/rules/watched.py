"""Commands in a process that writes down each path that Python opens to write, makes, renames or removes.

    python -m tests.rules.watched LOG LINES

`LINES` is a JSON file with a list of command lines; each path goes to `LOG`, one a line behind its command's number and
what was done. Printed is a JSON list of how the commands ended. Listings of folders before and after miss what is
removed again, and this misses what libraries write without Python; tests look at both.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Of each event the places of its paths among the arguments, each with that of its `dir_fd`.
_PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
    "sqlite3.connect": ((0, None),),
}


def _touched(event: str, arguments: tuple) -> Iterator[str]:
    """Absolute paths that an event changes."""
    if event == "open":
        path, mode, flags = arguments
        if (mode and set(mode) & set("wax+")) or (not mode and flags & _WRITES):
            yield _absolute(path, None)
    for place, folder in _PATHS.get(event, ()):
        if arguments[place] not in ("", ":memory:"):  # a database of SQLite that is no file
            yield _absolute(arguments[place], None if folder is None else arguments[folder])


def _absolute(path: object, folder: object) -> str:
    """Without following links at its end: a link is what is removed or made, not what it shows."""
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    at = Path(f"/proc/self/fd/{folder}").readlink() if isinstance(folder, int) and folder >= 0 else Path.cwd()
    return os.path.normpath(at / os.fsdecode(path))


def watch(log: Path) -> Callable[[object], None]:
    """Begin; what is returned sets the name that paths are written down behind. Forked processes write there too."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    name: list[object] = ["start"]

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" and event not in _PATHS:
            return
        try:
            for path in _touched(event, arguments):
                os.write(stream, f"{name[0]}\t{event}\t{path}\n".encode())
        except OSError:  # a path that is gone, of a call that fails by itself
            pass

    sys.addaudithook(hook)
    return lambda new: name.__setitem__(0, new)


if __name__ == "__main__":
    log, lines = map(Path, sys.argv[1:])
    commands = json.loads(lines.read_text(encoding="utf-8"))
    named = watch(log)
    from tests.rules.commands import seen

    ends = []
    for number, command in enumerate(commands):
        named(number)
        ended = seen(command)
        ends.append([ended.status, *ended.error, ended.escaped])
    sys.stdout.write(json.dumps(ends))
