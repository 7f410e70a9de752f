"""`voco-llama data prepare`: whether the public data sets are there as published, and what is left to do.

Without a set it lists all of them. With one it verifies what is there, links what lies among the downloads to its
place, and names the commands that fetch the rest, and the settings under which a training reads the archives in place.
It fetches and unpacks nothing itself.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voco_llama.data_tools.public_sets import (
    SETS_DIR,
    STATE_FILE,
    DataSet,
    Part,
    State,
    names_elsewhere,
    read_sets,
    verify,
)
from voco_llama.data_tools.settings import DataPrepareSettings
from voco_llama.data_tools.video_qa import CLIP_NAMES, folder_of, prepare_video_qa
from voco_llama.errors import DataError, SettingsError, did_you_mean, one_line

READY, PARTLY, MISSING, BROKEN = "ready", "partly", "missing", "broken"
_WIDTH = max(map(len, (READY, PARTLY, MISSING, BROKEN)))


@dataclass(frozen=True)
class PartReport:
    """Where a part stands.

    Attributes:
        place: The file or folder.
        size: In words.
        state: `ready`, `partly`, `missing` or `broken`.
        detail: What was found, or what to do.
    """

    place: str
    size: str
    state: str
    detail: str

    def __str__(self) -> str:
        size = f" ({self.size})" if self.size else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"  {self.state:<{_WIDTH}}  {self.place}{size}{detail}"


@dataclass(frozen=True)
class SetReport:
    """A set with its parts.

    Attributes:
        name: As in `set=`.
        facts: Lines on what it is.
        parts: In order.
        notes: What else to know.
    """

    name: str
    facts: tuple[str, ...]
    parts: tuple[PartReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """`ready` if all parts are, `missing` if nothing is there, else `partly`."""
        states = {part.state for part in self.parts}
        return states.pop() if states in ({READY}, {MISSING}) else PARTLY

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.state}", *(f"  {fact}" for fact in self.facts), *map(str, self.parts)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)]) + "\n"

    def check(self) -> None:
        """Raise a `DataError` where it is not ready."""
        left = sum(part.state != READY for part in self.parts)
        if left:
            raise DataError(
                f"{self.name} is not ready: {left} of its {len(self.parts)} parts are missing or broken; do what their"
                " lines above say, and run the same command again"
            )


def prepare(settings: DataPrepareSettings, sets_folder: Path = SETS_DIR) -> list[SetReport]:
    """List the sets, or verify one: what is ready and what is left to do.

    Args:
        settings: See there.
        sets_folder: The descriptions.

    Raises:
        SettingsError: There is no such set, or the folder of archives is missing.
        DataError: For a set of questions on clips: see `prepare_video_qa`.
    """
    name, archives = settings.set, settings.archives
    if name in CLIP_NAMES:
        prepare_video_qa(settings)
        return [_look_at_clips(name, settings)]
    sets = read_sets(sets_folder)
    if archives is not None and not archives.is_dir():
        raise SettingsError(f"archives={archives}: no such folder; name the one your downloads are in")
    if name is None:
        listed = [_report(name, sets, settings, None) for name in sets]
        return listed + [_look_at_clips(name, settings) for name in CLIP_NAMES]
    known = [*sets, *CLIP_NAMES]
    if name not in sets:
        raise SettingsError(f"set is {name!r}{did_you_mean(name, known)}: choose one of {', '.join(known)}")
    return [_report(name, sets, settings, State(settings.folder / STATE_FILE))]


def _report(name: str, sets: dict[str, DataSet], settings: DataPrepareSettings, state: State | None) -> SetReport:
    """A set; verified where there is a state, else looked at a glance: nothing is hashed or written."""
    described = sets[name]
    facts = [described.title, f"licence: {described.licence}", f"page: {described.page}"]
    if described.in_place is not None:
        facts.append(f"archives are read in place with: {described.in_place.format(folder=settings.folder)}")
    parts = []
    for part in described.files:
        place = settings.folder / (part.place or str(part.fills))
        found = next((file for file in _places(part, sets, settings) if file.is_file()), None)
        status, detail = _look_for(part, settings.folder) if found is None else _look_at(found, place, part, state)
        parts.append(PartReport(str(place), part.shown_size, status, detail))
    return SetReport(name, tuple(facts), tuple(parts), tuple(described.notes))


def _look_at(file: Path, place: Path, part: Part, state: State | None) -> tuple[str, str]:
    """State and detail of a part whose file was found, at its place or elsewhere."""
    try:
        if state is None:
            size = file.stat().st_size
            return (READY, "") if part.size in (None, size) else (BROKEN, f"{size} bytes, not {part.size}")
        found = verify(file, part, state)
        if file != place:  # among the downloads: linked to where the data settings look for it
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)  # a link that leads nowhere: else the file would have been found there
            place.symlink_to(file.resolve())
    except DataError as error:
        return BROKEN, str(error)
    except OSError as error:
        return BROKEN, f"cannot be read or written ({one_line(error)}); mend its rights"
    return READY, found


def _look_for(part: Part, folder: Path) -> tuple[str, str]:
    """State and detail of a part that has no file: by the files that it would fill a folder with."""
    command = part.fetching(folder)
    step = f"run: {command}" if command else f"{part.manual} (goes to {folder / (part.place or str(part.fills))})"
    if part.fills is None:
        return MISSING, step
    filled = folder / part.fills
    there = sum(len(names) for _, _, names in os.walk(filled))
    if there >= (part.count or 1):
        published = f"{part.count} published" if part.count else "no number is known"
        return READY, f"{there} files in {filled} ({published})"
    return (PARTLY, f"{there} of {part.count} files are in {filled}; {step}") if there else (MISSING, step)


def _places(part: Part, sets: dict[str, DataSet], settings: DataPrepareSettings) -> Iterator[Path]:
    """Where the file of a part may be, the surest first."""
    if part.place is not None:
        yield settings.folder / part.place
    if settings.archives is not None:
        yield from (settings.archives / name for name in names_elsewhere(part, sets))


def _look_at_clips(name: str, settings: DataPrepareSettings) -> SetReport:
    folder = folder_of(name, settings.hub)
    is_whole = (folder / "README.md").is_file()  # written last
    state, step = (READY, "") if is_whole else (MISSING, f"run with set={name} annotations=... videos=...")
    title = f"{folder.name}, questions on clips for lmms-eval, made from its annotations"
    facts = (title, "licence: that of the annotations and the clips")
    return SetReport(name, facts, (PartReport(str(folder), "", state, step),))
