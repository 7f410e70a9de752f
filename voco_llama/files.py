"""Files written aside and renamed: a reader sees the old one or the whole new one, and a kill leaves no half.

And files of JSON read, whose every fault is one line.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voco_llama.errors import CheckpointError, VoCoError, refused_as


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
