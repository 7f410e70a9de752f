"""Files written aside and renamed: a reader sees the old one or the whole new one, and a kill leaves no half."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def write_atomically(file: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_aside(file) as aside:
        aside.write_text(text, encoding="utf-8")
