"""Checkpoints that a run goes on from: which are whole, and how one takes its place.

The Trainer writes a checkpoint below `UNFINISHED`; what it wrote is listed there with its size, and then it is renamed
(`publish`). So a kill leaves none half written under its name; what else may be torn (a disk, a copy) is seen by the
sizes, which older ones lack, and by opening its files.
"""

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from voco_llama.errors import CheckpointError, refused_as, shown
from voco_llama.files import read_json, write_atomically

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Below the folder of a run: what is being written."""
SIZES_FILE = "sizes.json"
"""Of a checkpoint: file -> bytes, of all others."""

NEEDED = {
    "weights": ("model*.safetensors", "pytorch_model*"),
    "state of the optimizer": ("optimizer*", "latest"),  # `latest`: DeepSpeed's
    "state of random numbers": ("rng_state*.pth",),
    "state of the training": ("trainer_state.json",),
}
"""What a training goes on from, and how its files are named; one of them must be there."""


def damage(folder: Path) -> str | None:
    """Why a training could not go on from a checkpoint; None: it is whole."""
    try:
        return next(_faults(folder), None)
    except CheckpointError as error:
        return str(error)


def _faults(folder: Path) -> Iterator[str]:
    if (folder / SIZES_FILE).exists():
        for name, size in read_json(folder / SIZES_FILE).items():
            file = folder / name
            if not file.is_file():
                yield f"{name} is missing"
            elif file.stat().st_size != size:
                yield f"{name} has {file.stat().st_size} of {size} bytes"
    for file in sorted(folder.rglob("*")):  # a power failure may leave zeros
        _check_opens(file)
    for what, patterns in NEEDED.items():
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            yield f"it has no {what} ({' or '.join(patterns)})"
    if (folder / "optimizer.pt").exists() and not (folder / "scheduler.pt").exists():
        yield "scheduler.pt is missing"


def _check_opens(file: Path) -> None:
    """By the file's directory of contents, which is read without them."""
    with refused_as(CheckpointError, file.name):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin") and file.is_file():
            zipfile.ZipFile(file).close()
        elif file.name == "trainer_state.json":
            _check_state(file)
        elif file.name == "config.json":
            read_json(file)
        elif file.name.endswith(".index.json"):
            for name in set(read_json(file)["weight_map"].values()):
                (file.parent / name).stat()


def _check_state(file: Path) -> None:
    """Whether it is a state as the Trainer reads it, of the step that the folder is named by, if it is."""
    from transformers import TrainerState

    read_json(file)
    state = TrainerState.load_from_json(str(file))
    named = file.parent.name.removeprefix("checkpoint-")
    of_step = int(named) if named.isdecimal() else state.global_step
    if type(state.global_step) is not int or state.global_step != of_step or not isinstance(state.log_history, list):
        raise ValueError(f"it is of step {shown(state.global_step)}")


def by_step(run: Path) -> Iterator[Path]:
    """The checkpoints below a run's folder, the last first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    yield from sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_whole(run: Path) -> Path | None:
    """The last checkpoint that is whole; None: there is none. Those after it are named in a warning."""
    is_torn = False
    for folder in by_step(run):
        if (why := damage(folder)) is None:
            return folder
        logger.warning("%s was not written to its end, or is damaged (%s): passed over", folder, why)
        is_torn = True
    if is_torn:
        logger.warning("%s has no whole checkpoint: the training starts anew", run)
    return None


def discard_unfinished(run: Path) -> None:
    """Remove what was being written when a kill came, or the disk was full."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def publish(run: Path, name: str, keep: int | None) -> None:
    """Give a checkpoint that was written below `UNFINISHED` its place.

    Of the others, the last `keep - 1` whole ones stay; `keep` below 1, or None, removes none.
    """
    written = run / UNFINISHED / name
    sizes = {path.relative_to(written).as_posix(): path.stat().st_size for path in written.rglob("*") if path.is_file()}
    write_atomically(written / SIZES_FILE, json.dumps(sizes, indent=2) + "\n")
    take_place(run, name)
    if keep is None or keep < 1:
        return
    others = [folder for folder in by_step(run) if folder.name != name]
    whole = [folder for folder in others if damage(folder) is None]
    for folder in others:
        if folder not in whole[: keep - 1]:
            shutil.rmtree(folder, ignore_errors=True)


def take_place(run: Path, name: str) -> None:
    """Move a folder from `UNFINISHED` to the run's folder, in place of what has its name there."""
    old = run / name
    if old.exists():
        replaced = run / UNFINISHED / f"{name}.replaced"
        old.rename(replaced)  # so that no half of it is left under its name
    (run / UNFINISHED / name).rename(old)
    discard_unfinished(run)
