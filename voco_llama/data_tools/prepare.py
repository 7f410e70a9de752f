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
    choose,
    names_elsewhere,
    read_sets,
    verify,
)
from voco_llama.data_tools.video_qa import CLIP_NAMES, OWNER, prepare_video_qa
from voco_llama.errors import DataError, SettingsError, one_line

READY, PARTLY, MISSING, BROKEN = "ready", "partly", "missing", "broken"
_WIDTH = max(map(len, (READY, PARTLY, MISSING, BROKEN)))


@dataclass(frozen=True)
class DataPrepareSettings:
    """What `voco-llama data prepare` reads.

    Attributes:
        folder: Of the data; the places of the sets are below it.
        hub: Folder that holds the data sets of questions on clips, `<hub>/<owner>/<name>`.
        set: Which set; null lists all of them.
        archives: Another folder in which downloaded files are looked for.
        annotations: For `msvd_qa` and `msrvtt_qa`, as are the rest: see `prepare_video_qa`.
        videos: See there.
        answers: See there.
        mapping: See there.
        allow_missing: See there.
    """

    folder: Path
    hub: Path
    set: str | None = None
    archives: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    answers: Path | None = None
    mapping: Path | None = None
    allow_missing: bool = False


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


@dataclass(frozen=True)
class PrepareReport:
    """What a call found.

    Attributes:
        sets: One, or all of them.
        asked: Whether the user asked for a set to be made ready, rather than for the list.
    """

    sets: tuple[SetReport, ...]
    asked: bool

    def __str__(self) -> str:
        return "\n".join(map(str, self.sets))

    def check(self) -> None:
        """Complain about a set that was asked for and is not ready.

        Raises:
            DataError: It is not.
        """
        for found in self.sets:
            left = sum(part.state != READY for part in found.parts)
            if self.asked and left:
                raise DataError(
                    f"{found.name} is not ready: {left} of its {len(found.parts)} parts are missing or broken; do what "
                    "their lines above say, and run the same command again"
                )


def prepare(settings: DataPrepareSettings, sets_folder: Path = SETS_DIR) -> PrepareReport:
    """List the sets, or verify one.

    Args:
        settings: See there.
        sets_folder: The descriptions.

    Returns:
        What is ready and what is left to do.

    Raises:
        SettingsError: There is no such set, or the folder of archives is missing.
        DataError: For a set of questions on clips: see `prepare_video_qa`.
    """
    if settings.set in CLIP_NAMES:
        return PrepareReport((_prepare_clips(settings),), asked=True)
    sets = read_sets(sets_folder)
    if settings.archives is not None and not settings.archives.is_dir():
        raise SettingsError(f"archives={settings.archives}: no such folder; name the one your downloads are in")
    if settings.set is None:
        listed = [_report(name, sets, settings, None) for name in sets]
        return PrepareReport((*listed, *(_look_at_clips(name, settings) for name in CLIP_NAMES)), asked=False)
    choose(sets, settings.set, tuple(CLIP_NAMES))
    state = State(settings.folder / STATE_FILE)
    return PrepareReport((_report(settings.set, sets, settings, state),), asked=True)


def _report(name: str, sets: dict[str, DataSet], settings: DataPrepareSettings, state: State | None) -> SetReport:
    """A set; verified where there is a state, else looked at a glance: nothing is hashed or written."""
    described = sets[name]
    facts = [described.title, f"licence: {described.licence}", f"page: {described.page}"]
    if described.in_place is not None:
        facts.append(f"archives are read in place with: {described.in_place.format(folder=settings.folder)}")
    parts = tuple(_stands(part, sets, settings, state) for part in described.files)
    return SetReport(name, tuple(facts), parts, tuple(described.notes))


def _stands(part: Part, sets: dict[str, DataSet], settings: DataPrepareSettings, state: State | None) -> PartReport:
    def report(state: str, detail: str) -> PartReport:
        return PartReport(str(place), part.shown_size, state, detail)

    place = settings.folder / (part.place or str(part.fills))
    file = next((file for file in _places(part, sets, settings) if file.is_file()), None)
    if file is not None and state is None:
        size = file.stat().st_size
        return report(READY, "") if part.size in (None, size) else report(BROKEN, f"{size} bytes, not {part.size}")
    if file is not None:
        try:
            found = verify(file, part, state)
            _put_in_place(file, place)
        except DataError as error:
            return report(BROKEN, str(error))
        except OSError as error:
            return report(BROKEN, f"cannot be read or written ({one_line(error)}); mend its rights")
        return report(READY, found)
    command = part.fetching(settings.folder)
    step = f"run: {command}" if command else f"{part.manual} (goes to {place})"
    if part.fills is None:
        return report(MISSING, step)
    folder = settings.folder / part.fills
    there = _count(folder, at_most=part.count)
    if there >= (part.count or 1):
        published = f"{part.count} published" if part.count else "no number is known"
        return report(READY, f"{there} files in {folder} ({published})")
    return report(PARTLY, f"{there} of {part.count} files are in {folder}; {step}") if there else report(MISSING, step)


def _places(part: Part, sets: dict[str, DataSet], settings: DataPrepareSettings) -> Iterator[Path]:
    """Where the file of a part may be, the surest first."""
    if part.place is None:
        return
    yield settings.folder / part.place
    if settings.archives is not None:
        yield from (settings.archives / name for name in names_elsewhere(part, sets))


def _put_in_place(file: Path, place: Path) -> None:
    """A file that lies among the downloads is linked to where the data settings look for it."""
    if file != place:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # a link that leads nowhere: else the file would have been found there
        place.symlink_to(file.resolve())


def _prepare_clips(settings: DataPrepareSettings) -> SetReport:
    for key in ("annotations", "videos"):
        if getattr(settings, key) is None:
            raise SettingsError(f"{key} has no value: give one, as in '{key}=...'")
    prepare_video_qa(
        settings.set,
        settings.annotations,
        settings.videos,
        settings.hub,
        settings.answers,
        settings.mapping,
        settings.allow_missing,
    )
    return _look_at_clips(str(settings.set), settings)


def _look_at_clips(name: str, settings: DataPrepareSettings) -> SetReport:
    folder = settings.hub / OWNER / CLIP_NAMES[name][0]
    if (folder / "README.md").is_file():  # written last
        part = PartReport(str(folder), "", READY, "")
    else:
        part = PartReport(str(folder), "", MISSING, f"run with set={name} annotations=... videos=...")
    title = f"{CLIP_NAMES[name][0]}, questions on clips for lmms-eval, made from its annotations"
    return SetReport(name, (title, "licence: that of the annotations and the clips"), (part,))


def _count(folder: Path, at_most: int | None) -> int:
    """Files in a folder and those below, counted no further than needed."""
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if at_most is not None and count >= at_most:
            return count
    return count
