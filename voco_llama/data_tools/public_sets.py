"""What is known of the public data sets, one file a set in `configs/data_sets/`; whether a file is the published one.

A set is a list of parts: a file of records, an archive of images that is read in place, or a folder that only a person
can fill. Places are relative to the folder of data, and are those that `configs/data/` names.
"""

import json
import logging
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from voco_llama.composition import read_file
from voco_llama.config_files import CONFIG_DIR
from voco_llama.data.media.archives import Archive
from voco_llama.data.media.stored import content_key
from voco_llama.errors import DataError, one_line
from voco_llama.files import write_atomically

logger = logging.getLogger(__name__)

STATE_FILE = ".voco-llama-prepare.json"
END_BYTES = 64
"""Read from either end of a JSON file to see that it is whole."""
SETS_DIR = CONFIG_DIR / "data_sets"


@dataclass(frozen=True)
class Part:
    """One file or folder of a set.

    Attributes:
        place: The file; null for a folder that no archive of ours fills.
        about: Its size in words, where the number of bytes is not published.
        size: Its size in bytes, as published.
        sha256: As published, in hexadecimal.
        md5: As published, in hexadecimal; read where there is no `sha256`.
        unpack: The folder that the names in an archive are relative to, and that it may be unpacked into.
        fills: The folder in which the archive's files would then lie, or that is filled by hand.
        count: Files that lie there when it is complete, as published.
        url: Where the file is published, or
        repository: the repository of data on the hub that has it, under the last part of `place`, at
        revision: this commit.
        manual: What a person has to do to get it.
    """

    place: str | None = None
    about: str | None = None
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    unpack: str | None = None
    fills: str | None = None
    count: int | None = None
    url: str | None = None
    repository: str | None = None
    revision: str | None = None
    manual: str | None = None

    @property
    def shown_size(self) -> str:
        if self.size is None:
            return self.about or "size unknown"
        return f"{self.size / 1e6:.3g} MB" if self.size < 1e9 else f"{self.size / 1e9:.3g} GB"

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Algorithm and published value."""
        if self.sha256:
            return "sha256", self.sha256
        return ("md5", self.md5) if self.md5 else None

    def fetching(self, folder: Path) -> str | None:
        """The command that fetches it to its place below a folder; None where it takes a person."""
        if self.place is None:
            return None
        parent, name = (folder / self.place).parent, PurePosixPath(self.place).name
        if self.repository:
            options = f"--repo-type dataset --revision {self.revision} --local-dir {shlex.quote(str(parent))}"
            return f"hf download {self.repository} {name} {options}"
        return f"wget -c -P {shlex.quote(str(parent))} {self.url}" if self.url else None


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        title: What it is.
        page: Where it is published.
        licence: The terms it comes under, in a few words.
        files: Its parts.
        in_place: The settings under which a training reads its archives in place, `{folder}` standing for the data's.
        notes: What else its user should know.
    """

    title: str
    page: str
    licence: str
    files: list[Part]
    in_place: str | None = None
    notes: list[str] = field(default_factory=list)


def read_sets(folder: Path = SETS_DIR) -> dict[str, DataSet]:
    """Read every description in a folder, by the name of its file.

    Raises:
        SettingsError: A description has an unknown key, or lacks one.
    """
    return {file.stem: read_file(file, DataSet) for file in sorted(folder.glob("*.yaml"))}


def names_elsewhere(part: Part, sets: dict[str, DataSet]) -> list[str]:
    """Names under which a folder of downloads may have the file of a part, the surest first.

    Of `a/gqa/images.zip` these are `a/gqa/images.zip`, `gqa/images.zip` and `gqa_images.zip`; and `images.zip` alone
    if no other part of any set has a file of that name.
    """
    if part.place is None:
        return []
    parts = PurePosixPath(part.place).parts
    names = ["/".join(parts[start:]) for start in range(len(parts) - 1)]
    if len(parts) > 1:
        names.append("_".join(parts[-2:]))
    everyone = [other.place for data_set in sets.values() for other in data_set.files if other.place]
    if sum(PurePosixPath(place).name == parts[-1] for place in everyone) <= 1:
        names.append(parts[-1])
    return names


class State:
    """Checksums from earlier runs, as long as the files have not changed since.

    Attributes:
        file: Where they are kept. It may be lost or damaged: then everything is hashed again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        known: Any = {}
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("%s: cannot be read (%s); files are hashed again", file, one_line(error))
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}

    def checksum(self, file: Path, algorithm: str) -> str:
        """That of a file as it is now, in hexadecimal."""
        name, status = str(file.resolve()), file.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._known.get(name)
        if not isinstance(entry, dict) or entry.get("stamp") != stamp:
            entry = self._known[name] = {"stamp": stamp}
        if algorithm not in entry:
            logger.info("%s: reading it for its %s", file, algorithm)
            entry[algorithm] = content_key(file, algorithm)
            try:
                write_atomically(self.file, json.dumps(self._known, indent=1, sort_keys=True) + "\n")
            except OSError as error:
                logger.warning("%s: cannot be written (%s); the next run hashes again", self.file, one_line(error))
        return entry[algorithm]


def verify(file: Path, part: Part, state: State) -> str:
    """Compare a file with what is published of it.

    Returns:
        How far it was compared, in words.

    Raises:
        DataError: It is not the published file, or not whole.
    """
    size = file.stat().st_size
    if part.size is not None and size != part.size:
        short = "a download that was cut off" if size < part.size else "another version"
        raise DataError(f"{file}: {size} bytes, published are {part.size} ({short}); fetch it again")
    if part.unpack:
        _check_members(file, part)
    elif file.suffix == ".json":
        _check_json_ends(file, size)
    if part.checksum is None:
        return "size as published, no checksum is known" if part.size else "whole, no exact size or checksum is known"
    algorithm, published = part.checksum
    found = state.checksum(file, algorithm)
    if found != published:
        raise DataError(f"{file}: its {algorithm} is {found}, published is {published}; fetch it again")
    return f"size and {algorithm} as published" if part.size else f"{algorithm} as published"


def _check_members(file: Path, part: Part) -> None:
    """Look whether an archive can be read in place, and has as many files as published where they should be."""
    within = str(PurePosixPath(str(part.fills)).relative_to(str(part.unpack)))
    number = sum(within == "." or name.startswith(f"{within}/") for name in Archive(file).names())
    if not number:
        raise DataError(f"{file}: has nothing for {part.fills}, so it is another archive; fetch the published one")
    if part.count is not None and number < part.count:
        raise DataError(f"{file}: has {number} files for {part.fills}, published are {part.count}; fetch it again")


def _check_json_ends(file: Path, size: int) -> None:
    with file.open("rb") as opened:
        start = opened.read(END_BYTES).lstrip()
        opened.seek(max(0, size - END_BYTES), os.SEEK_SET)
        end = opened.read().rstrip()
    if not (start.startswith(b"[") and end.endswith(b"]")):
        raise DataError(f"{file}: no whole JSON list, perhaps a download that was cut off; fetch it again")
