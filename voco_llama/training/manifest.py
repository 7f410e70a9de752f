"""What a checkpoint says of itself: what made it, where in the training it stands, and its files with their hashes."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from voco_llama.errors import CheckpointError, refused_as, shown
from voco_llama.files import read_json, write_atomically
from voco_llama.training.batch import GlobalBatch

MANIFEST_FILE = "manifest.json"
SIZES_FILE = "sizes.json"
"""Of checkpoints that are older than manifests: file -> bytes."""
VERSION = 1
_MOST = 1 << 40
"""Rows or steps that nobody has."""
THREADS = 4
"""That hash files; one reads about 1.4 GB in a second."""


@dataclass(frozen=True)
class Origin:
    """What all checkpoints of a training have in common.

    Attributes:
        backend: As `Sharding.label` names it.
        batch: How the rows of a step were divided.
        records: Of the data set.
        rows_an_epoch: That an epoch shows of them.
        seed: Of the run.
        settings: A hash of those that touch what is learned.
        versions: Of packages.
    """

    backend: str
    batch: GlobalBatch
    records: int
    rows_an_epoch: int
    seed: int
    settings: str
    versions: dict[str, str | None]

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps."""
        return -(-self.rows_an_epoch // self.batch.size)


@dataclass(frozen=True)
class Manifest:
    """Of one checkpoint.

    Attributes:
        step: Optimizer steps that were made.
        origin: What made it.
        parameters: Names of what the optimizer trains, in the order of its groups; empty where its files hold names.
    """

    step: int
    origin: Origin
    parameters: tuple[tuple[str, ...], ...] = ()

    def position(self) -> dict[str, int]:
        """Where the data stands: whole epochs, and the rows of the one after that were seen."""
        epoch, steps = divmod(self.step, self.origin.steps_an_epoch)
        return {"epoch": epoch, "rows": steps * self.origin.batch.size}

    def write(self, folder: Path) -> None:
        """List the files of a checkpoint with their hashes."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        hashes = _hashes(files)
        listed = {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
            for file, digest in zip(files, hashes, strict=True)
        }
        text = {"version": VERSION, **asdict(self), "position": self.position(), "files": listed}
        write_atomically(folder / MANIFEST_FILE, json.dumps(text, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Of a checkpoint; None: it is older than manifests.

        Raises:
            CheckpointError: It is damaged, or of a version of this package that is newer.
        """
        if not (folder / MANIFEST_FILE).exists():
            return None
        there = read_json(folder / MANIFEST_FILE)
        with refused_as(CheckpointError, folder / MANIFEST_FILE):
            if there["version"] != VERSION:
                raise ValueError(f"it is of version {there['version']}, and {VERSION} is known")
            batch = GlobalBatch(**there["origin"]["batch"])
            origin = Origin(**{**there["origin"], "batch": batch})
            numbers = (batch.processes, batch.rows, batch.accumulation, origin.records, origin.rows_an_epoch)
            if not all(type(number) is int and 0 < number < _MOST for number in (*numbers, there["step"])):
                raise ValueError(f"it says {shown(numbers)} and step {shown(there['step'])}")
            if not all(isinstance(text, str) for text in (origin.backend, origin.settings)):
                raise ValueError(f"its backend is {shown(origin.backend)}")
            return cls(there["step"], origin, tuple(map(tuple, there["parameters"])))


def _hashes(files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(_hash, files))


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def size_faults(folder: Path) -> Iterator[str]:
    """What is not as long as was listed.

    Raises:
        CheckpointError: The list is damaged.
    """
    for name, size, _ in _listed(folder):
        file = folder / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} of {size} bytes"


def content_fault(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is not as was listed, by the hashes of a part of the files; None: nothing.

    Raises:
        CheckpointError: The list is damaged, or a file cannot be read.
    """
    hashed = [(name, digest) for name, _, digest in _listed(folder) if digest is not None][part::parts]
    with refused_as(CheckpointError, folder):
        found = zip(hashed, _hashes(folder / name for name, _ in hashed), strict=True)
    return next((f"{name} is not what was written" for (name, before), now in found if now != before), None)


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file of the checkpoint's own."""
    return len(name) < 1000 and not Path(name).is_absolute() and ".." not in Path(name).parts


def _listed(folder: Path) -> list[tuple[str, int, str | None]]:
    """Name, bytes and hash of each file that a checkpoint lists; none where it has no list."""
    if (folder / MANIFEST_FILE).exists():
        files = read_json(folder / MANIFEST_FILE).get("files")
        with refused_as(CheckpointError, folder / MANIFEST_FILE):
            if not files or not all(_is_inside(name) for name in files):
                raise ValueError("it lists no files, or some of other folders")
            return [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()]
    if (folder / SIZES_FILE).exists():
        return [(name, size, None) for name, size in read_json(folder / SIZES_FILE).items()]
    return []
