"""Checkpoints that a run goes on from: which are whole, and how one takes its place.

A checkpoint is written below `UNFINISHED`; what was written is listed there (`voco_llama.training.manifest`), and then
it is renamed (`publish`). So a kill leaves none half written under its name. What else may be torn (a disk, a copy) is
seen by the sizes and by opening its files, at every start; the hashes are of the one that a training goes on from.
"""

import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from voco_llama.errors import CheckpointError, refused_as, shown
from voco_llama.files import read_json, settle
from voco_llama.training.manifest import MANIFEST_FILE, Manifest, content_fault, size_faults
from voco_llama.training.run_files import by_step

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Below the folder of a run: what is being written."""

NEEDED = {
    "weights": ("model*.safetensors", "pytorch_model*"),
    "state of the optimizer": ("optimizer*", "latest"),  # `latest`: DeepSpeed's
    "state of random numbers": ("rng_state*.pth",),
    "state of the training": ("trainer_state.json",),
}
"""What a training goes on from, and how its files are named; one of them must be there."""


def damage(folder: Path, goes_on: bool = True) -> str | None:
    """Why a training could not go on from a checkpoint, as far as is seen without reading it; None: it is whole.

    Without `goes_on` it may be one of weights alone, as `save_only_model` wants it.
    """
    try:
        return next(_faults(folder, goes_on), None)
    except CheckpointError as error:
        return str(error)


def damage_inside(folder: Path) -> str | None:
    """The same, its files read and compared with their hashes: all processes of a training read a part each."""
    part, parts = 0, 1
    if torch.distributed.is_initialized():
        part, parts = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if (why := damage(folder)) is None:
        try:
            why = content_fault(folder, part, parts)
        except CheckpointError as error:
            why = str(error)
    return why if parts == 1 else _first_told(why, parts)


def _first_told(why: str | None, parts: int) -> str | None:
    """By the first process that says anything, so that all pass over the same checkpoints."""
    told: list[str | None] = [None] * parts
    torch.distributed.all_gather_object(told, why)
    return next((each for each in told if each is not None), None)


def _faults(folder: Path, goes_on: bool) -> Iterator[str]:
    Manifest.read(folder)
    yield from size_faults(folder)
    for file in sorted(folder.rglob("*")):  # a power failure may leave zeros
        _check_opens(file)
    for what, patterns in NEEDED.items() if goes_on else ():
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


def last_whole(run: Path) -> Path | None:
    """The last checkpoint that is whole; None: there is none. Those after it are named in a warning.

    All processes of a training call it together.
    """
    is_torn = False
    for folder in by_step(run):
        if (why := damage_inside(folder)) is None:
            return folder
        logger.warning("%s was not written to its end, or is damaged (%s): passed over", folder, why)
        is_torn = True
    if is_torn:
        logger.warning("%s has no whole checkpoint: the training starts anew", run)
    return None


def discard_unfinished(run: Path) -> None:
    """Remove what was being written when a kill came, or the disk was full."""
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def publish(run: Path, name: str, manifest: Manifest, keep: int | None) -> None:
    """Give a checkpoint that was written below `UNFINISHED` its place, with the list of its files.

    Of those of earlier steps the last `keep - 1` whole ones stay, and none of later steps: the training that wrote them
    is left. `keep` below 1, or None, removes none.
    """
    manifest.write(run / UNFINISHED / name)
    take_place(run, name)
    if keep is None or keep < 1:
        return
    others = list(by_step(run))
    earlier = others[others.index(run / name) + 1 :]
    whole = [folder for folder in earlier if damage(folder, goes_on=not (folder / MANIFEST_FILE).exists()) is None]
    for folder in others:
        if folder.name != name and folder not in whole[: keep - 1]:
            shutil.rmtree(folder, ignore_errors=True)


def take_place(run: Path, name: str) -> None:
    """Move a folder from `UNFINISHED` to the run's folder, in place of what has its name there.

    What it holds is on the disk before, so that a power failure leaves none half under its name.
    """
    settle(run / UNFINISHED / name, recursively=True)
    old = run / name
    if old.exists():
        replaced = run / UNFINISHED / f"{name}.replaced"
        old.rename(replaced)  # so that no half of it is left under its name
    (run / UNFINISHED / name).rename(old)
    settle(run)
    discard_unfinished(run)
