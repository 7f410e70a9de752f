"""A cleaned copy of a data set: the records that can be trained on, byte for byte, in files of the same formats.

    <cleaned>/<name of each source's file>
              data.yaml       the `data` group that reads them: data=<cleaned>/data.yaml chooses it

Images and clips are not copied: `media_folder` stays. Paths in `data.yaml` are absolute, so that it is read from any
folder. The folder of the copy is written whole or not at all.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from voco_llama.composition import to_plain
from voco_llama.data.readers import Reader
from voco_llama.data.readers.caption_csv import CaptionCsv
from voco_llama.data_tools.settings import writing
from voco_llama.errors import DataError, SettingsError
from voco_llama.files import written_aside
from voco_llama.settings import DataSettings

DATA_FILE = "data.yaml"


def check_cleaned(folder: Path, readers: Sequence[Reader], data: DataSettings) -> None:
    """Refuse, before anything is read, a folder that `write_cleaned` could not write.

    Raises:
        SettingsError: It is in use, it is a source's own folder, or a source's format has no file of records.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"cleaned: {folder} is not empty; give a new folder")
    for reader, source in zip(readers, data.sources, strict=True):
        if not hasattr(reader, "raw"):
            raise SettingsError(
                f"cleaned: {reader.file} is of format {source.format}, which cannot be copied record by record; leave"
                " cleaned out and set data.skip_bad_records=true"
            )
        if folder.resolve() == reader.file.resolve().parent:
            raise SettingsError(f"cleaned: {folder} holds {reader.file} itself; give a folder of its own")
        media = source.media_folder
        if media is not None and folder.resolve().is_relative_to(Path(media).resolve()):
            raise SettingsError(f"cleaned: {folder} lies in the media folder {media}; give one outside it")


def write_cleaned(folder: Path, readers: Sequence[Reader], kept: Sequence[np.ndarray], data: DataSettings) -> list[str]:
    """Write the folder.

    Args:
        folder: New or empty.
        readers: The sources, as `data` names them.
        kept: For each, `[records]` bool: which go in.
        data: Settings for the copy, but for its files.

    Returns:
        The name of the new file of each source, with its path.

    Raises:
        DataError: No record of a source is left.
        SettingsError: The folder cannot be written.
    """
    for reader, chosen in zip(readers, kept, strict=True):
        if not chosen.any():
            raise DataError(f"cleaned: no record of {reader.file} is left; mend or leave out this source")
    names = [reader.file.name for reader in readers]
    if len(set(names)) < len(names):
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    described = to_plain(data)
    for source, name in zip(described["sources"], names, strict=True):
        source["file"] = _from_anywhere(folder / name)
        source["media_folder"] = _from_anywhere(source["media_folder"])
        source["archives"] = {prefix: _from_anywhere(archives) for prefix, archives in source["archives"].items()}
    with writing("cleaned", folder), written_aside(folder) as aside:
        aside.mkdir()
        for reader, chosen, name in zip(readers, kept, names, strict=True):
            with (aside / name).open("wb") as stream:
                stream.writelines(_framed(reader, np.flatnonzero(chosen)))
        text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
        (aside / DATA_FILE).write_text(f"# Written by `voco-llama data check`.\n{text}", encoding="utf-8")
    return [source["file"] for source in described["sources"]]


def _from_anywhere(path: Any) -> Any:
    """An absolute path, or several; null stays."""
    if isinstance(path, list):
        return [_from_anywhere(one) for one in path]
    return None if path is None else str(Path(path).absolute())


def _framed(reader: Reader, records: np.ndarray) -> Iterator[bytes]:
    """The records' own bytes, and what belongs around them in a file of this format."""
    raw = (reader.raw(int(index)) for index in records)
    if isinstance(reader, CaptionCsv) or reader.file.suffix == ".jsonl":
        yield reader.header if isinstance(reader, CaptionCsv) else b""
        yield from (line if line.endswith(b"\n") else line + b"\n" for line in raw)
        return
    for place, record in enumerate(raw):
        yield b",\n" if place else b"[\n"
        yield record
    yield b"\n]\n"
