"""One sweep at a time on a folder, one process at a time on a run.

The lock is the operating system's (`flock`), so that it ends with the process that holds it, however that ends; the
file's text, the process id, is for people.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voco_llama.errors import SettingsError


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        SettingsError: Another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            opened.seek(0)
            process = opened.read().strip() or "unknown"
            raise SettingsError(
                f"process {process} is at work in {file.parent} (it holds {file.name}): wait for it, or stop it"
            ) from error
        opened.truncate(0)
        opened.write(f"{os.getpid()}\n")
        opened.flush()
        yield
