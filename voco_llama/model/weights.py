"""Weights on disk: read safely from any usual set of files, and held against the names and shapes of a model.

Tensors are mapped from disk, not copied. Nothing that a file holds is executed: pickles are read with
`weights_only=True`. Every file of an index is opened before any tensor is used, so that nothing is ever half-loaded.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from voco_llama.errors import CheckpointError, refused_as
from voco_llama.files import read_json

Weights = dict[str, Tensor]

OPEN_CLIP_WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", OPEN_CLIP_WEIGHTS_FILE)
INDEX_SUFFIX = ".index.json"
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")
"""Names of buffers that old checkpoints hold and that are computed anew."""

_NO_INDEX = "it is no index of weights; download it again"
_DAMAGED = "no weights, or damaged or not downloaded to the end; get them again, or the safetensors file of the same"

SHOWN = 3
"""Names listed in a message."""

LAYOUTS = (
    (r"model\.mm_projector\.", "LLaVA's original layout"),
    (r"(model\.)?multi_modal_projector\.", "the llava-hf layout"),
    (r"language_model\.model\.|projector\.|vision\.visual\.", "a VoCoLlama of ours"),
    (r"visual\.|transformer\.resblocks\.", "an open_clip model"),
    (r"vision_model\.|encoder\.layers\.", "Hugging Face's CLIP"),
    (r"base_model\.model\.", "adapters of peft"),
    (r"model\.layers\.", "a causal language model of transformers"),
)
"""Beginnings of names, and what has them; the first that matches tells."""


def read_weights(path: str | Path) -> Weights:
    """All tensors of a file, or of a folder: one file, or the shards that its index names.

    Args:
        path: A file (.safetensors, .bin or .pt) or a folder with `model.safetensors`, `pytorch_model.bin`, or an
            index of such.

    Raises:
        CheckpointError: There are no weights, an index names a shard that is not there or tensors that a shard lacks,
            or a file is damaged or holds more than tensors.
    """
    path = Path(path)
    if not path.is_dir():
        return read_file(path)
    file = weights_file(path)
    if file is None:
        raise CheckpointError(f"{path}: holds no weights ({', '.join(WEIGHT_FILES)}, or an index): download it again")
    check_one_set(path)
    return _read_shards(file) if file.suffix == ".json" else read_file(file)


def weights_file(folder: Path) -> Path | None:
    """The file of weights, or the index of such, that `read_weights` reads in a folder; None: there is none."""
    files = (folder / f"{name}{end}" for name in WEIGHT_FILES for end in (INDEX_SUFFIX, ""))
    return next((file for file in files if file.is_file()), None)


def check_one_set(folder: Path) -> None:
    """Refuse a folder whose weights are not all its own, and one with two sets of them of one format.

    Of two sets one reader takes this and another that; and transformers follows an index out of its folder.

    Raises:
        CheckpointError: A file of all weights lies beside an index that names others, or an index names a file that is
            not beside it.
    """
    for name in WEIGHT_FILES:
        file, index = folder / name, folder / f"{name}{INDEX_SUFFIX}"
        if index.is_file():
            with refused_as(CheckpointError, index, _NO_INDEX):
                named = set(read_json(index, advice=_NO_INDEX)["weight_map"].values())
                outside = sorted(shard for shard in named if Path(shard).name != shard)
            if outside:
                raise CheckpointError(f"{index}: names {outside[0]}, which is not beside it: download it again")
            if file.is_file() and named != {name}:
                raise CheckpointError(
                    f"{folder}: holds {name} and beside it {index.name}, which names other files: two sets of weights,"
                    " and nothing says which is meant: remove one"
                )


def check_not_quantized(config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are numbers of a quantization, which would be read as if they were the weights themselves.

    Raises:
        CheckpointError: `config.json` says so, or they have one byte each.
    """
    method = (config.get("quantization_config") or {}).get("quant_method")
    name = next((name for name, tensor in weights.items() if tensor.dtype.itemsize == 1 and tensor.dim() > 1), None)
    if method is not None or name is not None:
        why = f"{name} is {weights[name].dtype}" if method is None else f"its config.json says {method}"
        raise CheckpointError(f"{where}: its weights are quantized ({why}): get them as they were before")


def read_file(file: Path) -> Weights:
    """All tensors of one file.

    Raises:
        CheckpointError: It is missing or damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file: download it again")
    with refused_as(CheckpointError, file, _DAMAGED):
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        except UnpicklingError as error:
            if "Unsupported" not in str(error) and "GLOBAL" not in str(error):
                raise
            raise CheckpointError(
                f"{file}: is a pickle that holds more than tensors (it could run code) and is not opened: get the"
                " safetensors files of the same weights"
            ) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    are_named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    if not are_named or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{file}: holds no weights but a {type(weights).__name__}: give a file of named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _read_shards(index: Path) -> Weights:
    """The tensors that an index names, each from the shard that it names for it."""
    shard_of = read_json(index)["weight_map"]  # as `check_one_set` has seen
    shards = sorted(set(shard_of.values()))
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{index}: {len(absent)} of the {len(shards)} files that it names are not there, first"
            f" {', '.join(absent[:SHOWN])}: finish the download"
        )
    weights: Weights = {}
    for shard in shards:
        tensors = read_file(index.parent / shard)
        lacking = [name for name, file in shard_of.items() if file == shard and name not in tensors]
        if lacking:
            raise CheckpointError(
                f"{index.parent / shard}: lacks {len(lacking)} tensors that the index names for it, first"
                f" {', '.join(lacking[:SHOWN])}: the files are of different downloads; get them again"
            )
        weights |= {name: tensor for name, tensor in tensors.items() if shard_of.get(name) == shard}
    return weights


def without_buffers(weights: Mapping[str, Tensor]) -> Weights:
    """The weights without those of `BUFFERS`."""
    return {name: tensor for name, tensor in weights.items() if not BUFFERS.fullmatch(name)}


def below(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    """The weights whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_fit(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str, advice: str, optional: Iterable[str] = ()
) -> None:
    """Refuse weights whose names or shapes are not a model's.

    Args:
        expected: The model's own, of which only names and shapes are looked at (they may be on the meta device).
        weights: What would be loaded.
        what, advice: What the message calls the weights, with the file, and its end: what to do.
        optional: Names that may be missing (tied weights).

    Raises:
        CheckpointError: It lists the first missing and unexpected names, with a guess of what the weights are, or the
            first shapes that differ.
    """
    info = {
        "missing_keys": set(expected) - set(weights) - set(optional),
        "unexpected_keys": set(weights) - set(expected),
        "mismatched_keys": [
            (name, weights[name].shape, needed.shape)
            for name, needed in expected.items()
            if name in weights and needed.shape != weights[name].shape
        ],
    }
    check_loaded(info, what, advice)


def check_loaded(info: Mapping[str, Any], what: str, advice: str) -> None:
    """`check_fit` for what transformers' `from_pretrained` says of its loading (`output_loading_info=True`)."""
    missing, unexpected, shapes = (sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched"))
    count = len(missing) + len(unexpected) + len(shapes)
    if not count:
        return
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if shapes:
        told = (f"{name} {list(found)} instead of {list(needed)}" for name, found, needed in shapes[:SHOWN])
        parts.append(f"{len(shapes)} of another shape ({', '.join(told)})")
    if missing and unexpected and (guess := guess_layout(unexpected)):
        parts.append(f"the names look like {guess}")
    raise CheckpointError(f"{what} do not fit: {count} tensors differ: {'; '.join(parts)}: {advice}")


def guess_layout(names: Iterable[str]) -> str | None:
    """What weights of such names are; None if nothing is known that has them."""
    names = list(names)
    return next((layout for pattern, layout in LAYOUTS if any(re.match(pattern, name) for name in names)), None)
