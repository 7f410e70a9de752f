"""What is known of the public data sets: one file a set below `configs/data_sets/`.

A set is a list of parts: a file that is read as it is (records), an archive and the folder that it fills, or a folder
that only a person can fill. Places are relative to the folder of data, and are those that `configs/data/` names.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from voco_llama.composition import CONFIG_DIR, did_you_mean, read_file
from voco_llama.errors import SettingsError

SETS_DIR = CONFIG_DIR / "data_sets"
BYTES_A_GB = 10**9
BYTES_A_MB = 10**6
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}


@dataclass(frozen=True)
class Part:
    """One file or folder of a set.

    Attributes:
        place: The file; null for a folder that no archive of ours fills.
        about: Its size in words, where the number of bytes is not published.
        size: Its size in bytes, as published.
        sha256: As published, in hexadecimal.
        md5: As published, in hexadecimal; read where there is no `sha256`.
        unpack: The folder that an archive is unpacked into.
        fills: The folder in which the archive's files lie afterwards, or that is filled by hand.
        count: Files that lie there when it is complete, as published.
        url: Where the file is fetched from, or
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
        if self.size < BYTES_A_GB:
            return f"{self.size / BYTES_A_MB:.3g} MB"
        return f"{self.size / BYTES_A_GB:.3g} GB"

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Algorithm and published value."""
        if self.sha256:
            return "sha256", self.sha256
        return ("md5", self.md5) if self.md5 else None

    @property
    def source(self) -> str | None:
        """Where it can be fetched from without a person: a URL, for messages."""
        if self.repository and self.place:
            name = PurePosixPath(self.place).name
            return f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision}/{name}"
        return self.url


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        title: What it is.
        page: Where it is published.
        licence: The terms it comes under, in a few words.
        files: Its parts.
        notes: What else its user should know.
    """

    title: str
    page: str
    licence: str
    files: list[Part]
    notes: list[str] = field(default_factory=list)


def read_sets(folder: Path = SETS_DIR) -> dict[str, DataSet]:
    """Read every description in a folder, by the name of its file.

    Raises:
        SettingsError: A description has an unknown key, lacks one, or contradicts itself.
    """
    return {file.stem: read_set(file) for file in sorted(folder.glob("*.yaml"))}


def read_set(file: Path) -> DataSet:
    """Read one description.

    Raises:
        SettingsError: It has an unknown key, lacks one, or contradicts itself.
    """
    data_set = read_file(file, DataSet)
    for number, part in enumerate(data_set.files, start=1):
        problem = _problem(part)
        if problem:
            raise SettingsError(f"{file}: part {number} {problem}: mend it")
    return data_set


def choose(sets: dict[str, DataSet], name: str, others: tuple[str, ...] = ()) -> DataSet:
    """The set of a name.

    Raises:
        SettingsError: There is none.
    """
    if name not in sets:
        known = [*sets, *others]
        raise SettingsError(f"set is {name!r}{did_you_mean(name, known)}: choose one of {', '.join(known)}")
    return sets[name]


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


def _problem(part: Part) -> str | None:
    """What a part's description contradicts, or None."""
    for name in (part.place, part.unpack, part.fills):
        if name is not None and (not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
            return f"names {name!r}, which is no place below the folder of data"
    if part.place is None and (part.fills is None or part.manual is None):
        return "has no place, so it needs fills and manual"
    if (part.unpack is None) != (part.fills is None) and part.place is not None:
        return "has one of unpack and fills without the other"
    if part.unpack and part.fills and not PurePosixPath(part.fills).is_relative_to(part.unpack):
        return "fills a folder that is not inside the one it is unpacked into"
    if not (part.source or part.manual):
        return "says neither url nor repository nor manual"
    if part.url is not None and not part.url.startswith(("http://", "https://")):
        return f"has the URL {part.url!r}, which is not http(s)"
    if (part.repository is None) != (part.revision is None):
        return "has one of repository and revision without the other"
    if part.size is None and part.about is None:
        return "says neither size nor about"
    for name, pattern in _HEX.items():
        value = getattr(part, name)
        if value is not None and not pattern.fullmatch(value):
            return f"has a {name} that is none"
    return None
