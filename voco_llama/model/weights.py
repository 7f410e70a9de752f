"""Weights on disk: read safely from any usual set of files, and held against the names and shapes of a model.

Tensors are mapped from disk, not copied. Nothing that a file holds is executed: pickles are read with
`weights_only=True`. Every file of an index is opened before any tensor is used, so that nothing is ever half-loaded.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voco_llama.errors import CheckpointError, one_line

Weights = dict[str, Tensor]

OPEN_CLIP_WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", OPEN_CLIP_WEIGHTS_FILE)
INDEX_SUFFIX = ".index.json"
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids)")
"""Names of buffers that old checkpoints hold and that are computed anew."""

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
    for name in WEIGHT_FILES:
        if (path / f"{name}{INDEX_SUFFIX}").is_file():
            return _read_shards(path / f"{name}{INDEX_SUFFIX}")
        if (path / name).is_file():
            return read_file(path / name)
    raise CheckpointError(f"{path}: holds no weights ({', '.join(WEIGHT_FILES)}, or an index): download it again")


def has_weights(folder: Path) -> bool:
    """Whether a folder has files that `read_weights` would read."""
    return any((folder / f"{name}{end}").is_file() for name in WEIGHT_FILES for end in ("", INDEX_SUFFIX))


def read_file(file: Path) -> Weights:
    """All tensors of one file.

    Raises:
        CheckpointError: It is missing or damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file: download it again")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{file}: is a pickle that holds more than tensors (it could run code) and is not opened: get the"
                " safetensors files of the same weights"
            ) from error
        raise CheckpointError(_damaged(file, error)) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{file}: holds no weights but a {type(weights).__name__}: give a file of named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _damaged(file: Path, error: Exception) -> str:
    return (
        f"{file}: cannot be read as weights ({one_line(error)}): it is damaged or was not downloaded to its end;"
        " get it again, or the safetensors file of the same weights"
    )


def _read_shards(index: Path) -> Weights:
    """The tensors that an index names, each from the shard that it names for it."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: is not an index of weights ({error}): download it again") from error
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index}: names {outside[0]}, which is not beside it: download it again")
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
        what: What messages call the weights, with the file.
        advice: The end of the message: what to do.
        optional: Names that may be missing (tied weights).

    Raises:
        CheckpointError: It lists the first missing and unexpected names, with a guess of what the weights are, or the
            first shapes that differ.
    """
    missing = sorted(set(expected) - set(weights) - set(optional))
    unexpected = sorted(set(weights) - set(expected))
    shapes = [
        (name, weights[name].shape, expected[name].shape)
        for name in expected
        if name in weights and expected[name].shape != weights[name].shape
    ]
    _refuse(missing, unexpected, shapes, guess_layout(weights), what, advice)


def check_loaded(info: Mapping[str, Any], what: str, advice: str) -> None:
    """`check_fit` for what transformers' `from_pretrained` says of its loading (`output_loading_info=True`)."""
    unexpected = sorted(info["unexpected_keys"])
    shapes = sorted(info["mismatched_keys"])
    _refuse(sorted(info["missing_keys"]), unexpected, shapes, guess_layout(unexpected), what, advice)


def _refuse(
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    guess: str | None,
    what: str,
    advice: str,
) -> None:
    """Raise if anything differs; `shapes` has name, shape found and shape needed."""
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
    if missing and unexpected and guess:
        parts.append(f"the names look like {guess}")
    raise CheckpointError(f"{what} do not fit: {count} tensors differ: {'; '.join(parts)}: {advice}")


def guess_layout(names: Iterable[str]) -> str | None:
    """What weights of such names are; None if nothing is known that has them."""
    names = list(names)
    for pattern, layout in LAYOUTS:
        if any(re.match(pattern, name) for name in names):
            return layout
    return None
