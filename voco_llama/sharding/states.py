"""The optimizer's state in a checkpoint, whichever backend wrote it: by the names of parameters, whole, one at a time.

Of each parameter there are AdamW's two moments, its count of steps, and where the backend keeps one, the float32 weight
that is updated (`MASTER`); flat, or of the parameter's shape. Tensors are mapped from disk, and nothing that a file
holds is executed.

| backend | files |
|---|---|
| PyTorch, DDP | `optimizer.pt`: by numbers, in the order of the optimizer's groups |
| ZeRO 1, 2 | of each process: flat pieces, and where in them which parameter's piece is |
| ZeRO 3 | of each process: flat pieces; each parameter is cut into as many equal pieces as there were processes |
| FSDP | `optimizer/`, of `torch.distributed.checkpoint` |
"""

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voco_llama.errors import CheckpointError
from voco_llama.sharding.fsdp import Fsdp
from voco_llama.sharding.zero import Zero, classes_of_states

MASTER, STEP = "master", "step"
MOMENTS_OF_ADAM = ("exp_avg", "exp_avg_sq")
OPTIMIZER_FILE, OPTIMIZER_FOLDER = "optimizer.pt", "optimizer"
SEPARATOR = "::"
"""Between a parameter's name and the key of its state, in FSDP's."""
OF_METADATA = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "ChunkStorageMetadata", "TensorStorageMetadata",
        "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
}  # fmt: skip
"""What the list of FSDP's files, a pickle, is made of, by module; and types of elements."""

State = dict[str, Tensor]
States = Mapping[str, Callable[[], State]]
"""Name of a parameter -> reads its state."""


def read_states(folder: Path, label: str, parameters: Sequence[Sequence[str]]) -> States:
    """The states in a checkpoint.

    Args:
        folder: The checkpoint.
        label: What wrote it (`Sharding.label`).
        parameters: Names of parameters, in the order of the optimizer's groups, of a checkpoint of PyTorch.

    Raises:
        CheckpointError: The optimizer was none of AdamW's kind.
    """
    if label.startswith(Zero.name):
        states = _of_zero(folder)
    elif label == Fsdp.name:
        states = _of_fsdp(folder / OPTIMIZER_FOLDER)
    else:
        states = _of_pytorch(folder / OPTIMIZER_FILE, parameters)
    kept = set(next(iter(states.values()))()) if states else set()
    if kept - {MASTER} != {STEP, *MOMENTS_OF_ADAM}:
        raise CheckpointError(
            f"{folder}: its optimizer keeps {', '.join(sorted(kept)) or 'nothing'}, and only AdamW's state can go from"
            f" one backend to another: go on with {label}, in as many processes as before"
        )
    return states


def _of_pytorch(file: Path, parameters: Sequence[Sequence[str]]) -> States:
    saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    names = [name for group in parameters for name in group]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state = saved["state"]
    return {name: partial(dict, state[number]) for name, number in zip(names, numbers, strict=True) if number in state}


def _of_fsdp(folder: Path) -> States:
    from torch.distributed.checkpoint import FileSystemReader, load

    _check_metadata(folder / ".metadata")
    described = FileSystemReader(folder).read_metadata().state_dict_metadata
    keys: dict[str, dict[str, Any]] = {}
    for key, entry in described.items():
        name, _, part = key.partition(SEPARATOR)
        keys.setdefault(name, {})[part] = entry

    def read(name: str) -> State:
        wanted = {
            f"{name}{SEPARATOR}{part}": torch.empty(entry.size, dtype=entry.properties.dtype)
            for part, entry in keys[name].items()
        }
        load(wanted, checkpoint_id=folder, no_dist=True)
        return {key.partition(SEPARATOR)[2]: value for key, value in wanted.items()}

    return {name: partial(read, name) for name in keys}


def _check_metadata(file: Path) -> None:
    """Read the pickle that `torch.distributed.checkpoint` reads, but nothing in it that it does not write."""
    with file.open("rb") as stream:
        _MetadataAlone(stream).load()


class _MetadataAlone(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_type and name not in OF_METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"it holds more than metadata: {module}.{name}")
        return super().find_class(module, name)


def _of_zero(folder: Path) -> States:
    folder = folder / (folder / "latest").read_text(encoding="utf-8").strip()
    files = sorted(folder.glob("*_optim_states.pt"), key=lambda file: int(file.name.split("_")[-6]))
    with torch.serialization.safe_globals(classes_of_states()):
        pieces = [_mapped(file)["optimizer_state_dict"] for file in files]
    if int(pieces[0]["zero_stage"]) == 3:
        (shapes_file, *_) = sorted(folder.glob("zero_pp_rank_0_*model_states.pt"))
        return _of_zero_3(pieces, _mapped(shapes_file)["param_shapes"])
    return _of_zero_1_2(pieces)


def _mapped(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _of_zero_1_2(pieces: Sequence[Mapping[str, Any]]) -> States:
    """Each process has a run of each group, laid end to end; a parameter may end in another one's than it begins in."""
    names = {
        name: group for piece in pieces for group, held in enumerate(piece["param_slice_mappings"]) for name in held
    }

    def read(name: str, group: int) -> State:
        found: dict[str, list[Tensor]] = {key: [] for key in (MASTER, *MOMENTS_OF_ADAM)}
        for piece in pieces:
            state = piece["base_optimizer_state"]["state"][group]
            if (address := piece["param_slice_mappings"][group].get(name)) is not None:
                for key, parts in found.items():
                    flat = piece["single_partition_of_fp32_groups"][group] if key == MASTER else state[key]
                    parts.append(flat.narrow(0, address.start, address.numel))
        return {key: torch.cat(parts) for key, parts in found.items()} | {STEP: torch.as_tensor(state[STEP])}

    return {name: partial(read, name, group) for name, group in names.items()}


def _of_zero_3(pieces: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, torch.Size]]) -> States:
    """Each process has its piece of every parameter, the last one's filled up; groups are laid end to end."""
    places: dict[str, tuple[int, int, int]] = {}
    sizes = [len(flat) for flat in pieces[0]["fp32_flat_groups"]]
    group = start = 0
    for name, shape in (item for of_group in shapes for item in of_group.items()):
        while start == sizes[group]:
            group, start = group + 1, 0
        places[name] = (group, start, shape.numel())
        start += math.ceil(shape.numel() / len(pieces))

    def read(name: str) -> State:
        group, start, numel = places[name]
        length = math.ceil(numel / len(pieces))
        states = [piece["optimizer_state_dict"]["state"][group] for piece in pieces]
        flats = {MASTER: [piece["fp32_flat_groups"][group] for piece in pieces]}
        flats |= {key: [state[key] for state in states] for key in MOMENTS_OF_ADAM}
        whole = {key: torch.cat([part.narrow(0, start, length) for part in parts]) for key, parts in flats.items()}
        return {key: value[:numel] for key, value in whole.items()} | {STEP: torch.as_tensor(states[0][STEP])}

    return {name: partial(read, name) for name in places}
