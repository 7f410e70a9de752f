"""`voco-llama data prepare`: from downloaded archives to folders that a training can read.

Without a set it lists all of them. With one it verifies what is there, unpacks what is not unpacked, fetches only what
it is told to (`download=true`), and says what is left for a person to do. Run again, it does what is left.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from voco_llama.data_tools.prepare.download import check_online, download
from voco_llama.data_tools.prepare.members import TEMPORARY, UnpackLimits
from voco_llama.data_tools.prepare.report import BROKEN, MISSING, PARTLY, READY, PartReport, PrepareReport, SetReport
from voco_llama.data_tools.prepare.sets import SETS_DIR, DataSet, Part, choose, names_elsewhere, read_sets
from voco_llama.data_tools.prepare.unpack import unpack
from voco_llama.data_tools.prepare.verify import STATE_FILE, State, verify
from voco_llama.data_tools.prepare.video_qa import CLIP_NAMES, OWNER, PrepareVideoQaSettings, prepare_video_qa
from voco_llama.errors import DataError, SettingsError, one_line

logger = logging.getLogger(__name__)

LOCK_FILE = ".voco-llama-prepare.lock"
UNPACKED = "unpacked"
"""Fact of an archive in the state file: the folder that it was wholly unpacked into."""


@dataclass(frozen=True)
class DataPrepareSettings:
    """What `voco-llama data prepare` reads.

    Attributes:
        folder: Of the data; the places of the sets are below it.
        hub: Folder that holds the data sets of questions on clips, `<hub>/<owner>/<name>`.
        max_members: Files and folders that an archive may hold.
        max_ratio: Bytes that an archive may unpack to for each byte it has.
        retries: Times that a broken connection is made again without a byte of progress between.
        set: Which set; null lists all of them.
        archives: Another folder in which downloaded files are looked for.
        unpack: False only verifies; a training can read archives as they are.
        download: Fetch what is missing, where a program can.
        annotations: For `msvd_qa` and `msrvtt_qa`, as are the rest: see `PrepareVideoQaSettings`.
        videos: See there.
        answers: See there.
        mapping: See there.
        allow_missing: See there.
    """

    folder: Path
    hub: Path
    max_members: int
    max_ratio: float
    retries: int
    set: str | None = None
    archives: Path | None = None
    unpack: bool = True
    download: bool = False
    annotations: Path | None = None
    videos: Path | None = None
    answers: Path | None = None
    mapping: Path | None = None
    allow_missing: bool = False


def prepare(settings: DataPrepareSettings, sets_folder: Path = SETS_DIR) -> PrepareReport:
    """List the sets, or make one ready as far as that goes without a person.

    Args:
        settings: See there.
        sets_folder: The descriptions.

    Returns:
        What is ready and what is left to do.

    Raises:
        SettingsError: There is no such set, the folder of archives is missing, a download is asked for offline, or
            another process is at work in the folder.
        DataError: For a set of questions on clips: see `prepare_video_qa`.
    """
    if settings.set in CLIP_NAMES:
        return PrepareReport((_prepare_clips(settings),), asked=True)
    sets = read_sets(sets_folder)
    if settings.archives is not None and not settings.archives.is_dir():
        raise SettingsError(f"archives={settings.archives}: no such folder; name the one your downloads are in")
    if settings.set is None:
        work = _Work(settings, sets, State(settings.folder / STATE_FILE))
        listed = [_report(name, data_set, work.look) for name, data_set in sets.items()]
        return PrepareReport((*listed, *(_look_at_clips(name, settings) for name in CLIP_NAMES)), asked=False)
    data_set = choose(sets, settings.set, tuple(CLIP_NAMES))
    if settings.download:
        check_online()
    with _alone(settings.folder):
        work = _Work(settings, sets, State(settings.folder / STATE_FILE))
        return PrepareReport((_report(settings.set, data_set, work.make_ready),), asked=True)


class _Work:
    """One run over the parts of sets."""

    def __init__(self, settings: DataPrepareSettings, sets: dict[str, DataSet], state: State) -> None:
        self.settings = settings
        self.sets = sets
        self.state = state

    def look(self, part: Part) -> PartReport:
        """Where a part stands, at a glance: nothing is hashed, read or written."""
        file = self._find(part)
        if part.fills is None:
            if file is None:
                return self._missing(part)
            if part.size not in (None, file.stat().st_size):
                return self._part(part, BROKEN, f"{file.stat().st_size} bytes, published are {part.size}")
            return self._part(part, READY, "")
        if self._is_filled(part, file):
            return self._part(part, READY, "")
        if file is not None:
            return self._part(part, PARTLY, f"{file} is there and not unpacked; set= unpacks it")
        return self._missing(part)

    def make_ready(self, part: Part) -> PartReport:
        """Verify, fetch, and unpack a part, as the settings ask for; what is wrong with it is reported."""
        try:
            file = self._find(part)
            is_linked = (self.settings.folder / (part.fills or "")).is_symlink()
            if part.fills and (file is None or is_linked) and self._is_filled(part, None):
                there = _count(self.settings.folder / part.fills, at_most=None)
                wanted = f"{part.count} published" if part.count else "no number is known"
                return self._part(part, READY, f"{there} files ({wanted})")
            if file is None and part.place and part.source and self.settings.download:
                file = self.settings.folder / part.place
                with _bar(f"download {file.name}", part.size) as bar:
                    download(part, file, self.state, self.settings.retries, bar)
            if file is None:
                return self._missing(part)
            with _bar(f"verify {file.name}", file.stat().st_size) as bar:
                found = verify(file, part, self.state, bar)
            if not self.settings.unpack:
                return self._part(part, READY, f"{file}: {found}")
            if part.fills is None:
                self._put_in_place(file, part)
                return self._part(part, READY, found)
            return self._unpack(file, part, found)
        except DataError as error:
            return self._part(part, BROKEN, str(error))
        except OSError as error:
            return self._part(part, BROKEN, f"cannot be read or written ({one_line(error)}); mend its rights")

    def _unpack(self, file: Path, part: Part, found: str) -> PartReport:
        folder = self.settings.folder / str(part.unpack)
        limits = UnpackLimits(self.settings.max_members, self.settings.max_ratio)
        done_before = self.state.get(file, UNPACKED) == str(folder.resolve())
        with _bar(f"unpack {file.name}", None) as bar:
            unpacked = unpack(file, folder, limits, trust_sizes=done_before, progress=bar)
        filled = self.settings.folder / str(part.fills)
        if not _count(filled, at_most=1):
            raise DataError(f"{file}: has nothing for {filled}, so it is another archive; fetch {part.source}")
        self.state.put(file, UNPACKED, str(folder.resolve()))
        return self._part(
            part, READY, f"{found}; {unpacked.written} files unpacked, {unpacked.skipped} were there already"
        )

    def _is_filled(self, part: Part, file: Path | None) -> bool:
        """Whether the folder of a part is complete, as far as can be told."""
        folder = self.settings.folder / str(part.fills)
        if part.unpack and (self.settings.folder / part.unpack / TEMPORARY).exists():  # cut off
            return False
        if part.count is not None:
            return _count(folder, at_most=part.count) >= part.count
        if file is None:
            return _count(folder, at_most=1) > 0
        into = (self.settings.folder / str(part.unpack)).resolve()
        return self.state.get(file, UNPACKED) == str(into) and _count(folder, at_most=1) > 0

    def _find(self, part: Part) -> Path | None:
        if part.place is None:
            return None
        places = [self.settings.folder / part.place]
        if self.settings.archives is not None:
            places += [self.settings.archives / name for name in names_elsewhere(part, self.sets)]
        return next((place for place in places if place.is_file()), None)

    def _put_in_place(self, file: Path, part: Part) -> None:
        """A file of records that lies among the downloads is linked to where the data settings look for it."""
        place = self.settings.folder / str(part.place)
        if file == place:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # a link that leads nowhere: else the file would have been found there
        place.symlink_to(file.resolve())

    def _missing(self, part: Part) -> PartReport:
        place = self.settings.folder / (part.place or str(part.fills))
        if part.source is None:
            step = f"{part.manual} (goes to {place})"
        else:
            step = f"download {part.source} to {place}, or run with download=true"
        if part.fills and _count(self.settings.folder / part.fills, at_most=1):
            there = _count(self.settings.folder / part.fills, at_most=part.count)
            return self._part(part, PARTLY, f"{there} of {part.count or 'its'} files are there; {step}")
        return self._part(part, MISSING, step)

    def _part(self, part: Part, state: str, detail: str) -> PartReport:
        shown = part.place if part.fills is None or not self.settings.unpack else part.fills
        return PartReport(str(self.settings.folder / (shown or str(part.fills))), part.shown_size, state, detail)


def _report(name: str, data_set: DataSet, look: Callable[[Part], PartReport]) -> SetReport:
    parts = tuple(look(part) for part in data_set.files)
    return SetReport(name, data_set.title, data_set.licence, data_set.page, parts, tuple(data_set.notes))


def _prepare_clips(settings: DataPrepareSettings) -> SetReport:
    for key in ("annotations", "videos"):
        if getattr(settings, key) is None:
            raise SettingsError(f"{key} has no value: give one, as in '{key}=...'")
    known = {entry.name for entry in dataclasses.fields(PrepareVideoQaSettings)}
    values = {name: value for name, value in vars(settings).items() if name in known}
    prepare_video_qa(PrepareVideoQaSettings(**values))
    return _look_at_clips(str(settings.set), settings)


def _look_at_clips(name: str, settings: DataPrepareSettings) -> SetReport:
    folder = settings.hub / OWNER / CLIP_NAMES[name][0]
    if (folder / "README.md").is_file():  # written last
        part = PartReport(str(folder), "", READY, "")
    else:
        part = PartReport(str(folder), "", MISSING, f"run with set={name} annotations=... videos=...")
    title = f"{CLIP_NAMES[name][0]}, questions on clips for lmms-eval, made from its annotations"
    return SetReport(name, title, "that of the annotations and the clips", "", (part,), ())


def _count(folder: Path, at_most: int | None) -> int:
    """Files in a folder and those below, counted no further than needed."""
    count = 0
    for _, _, names in os.walk(folder):
        count += len(names)
        if at_most is not None and count >= at_most:
            return count
    return count


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK_FILE, timeout=0):
            yield
    except Timeout as error:
        raise SettingsError(f"{folder}: another data prepare is at work there; wait for it, or stop it") from error
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written to ({one_line(error)}); set paths.data=...") from error


@contextmanager
def _bar(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A line in the log, and on a terminal a progress bar in bytes."""
    logger.info("%s", text)
    with tqdm(total=total, desc=text, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        yield bar.update
