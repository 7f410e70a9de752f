"""What the file of a `VoCoCache` says, and what is refused of one."""

import zlib
from pathlib import Path

import torch
from torch import Tensor

from voco_llama.errors import CheckpointError

FORMAT = "voco_llama.cache"
FORMAT_VERSION = 2
UNIFORM_VERSION = 1
"""Of files in which every entry has as many tokens: `[layers, entries, kv_heads, N, head_dim]`. They are still read."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of models."""
CHECKSUM = "checksum"
"""Of the metadata; the first files of `UNIFORM_VERSION` have none, and are read without."""


def as_described(keys: Tensor, values: Tensor, counts: Tensor, metadata: dict[str, str]) -> tuple[Tensor, ...] | None:
    """The tensors of a file; None where they belie its description."""
    agree = counts.dim() == 1 and metadata.get("entries") == str(len(counts)) and _has_dtype(keys, metadata)
    return (keys, values, counts) if agree else None


def of_uniform(keys: Tensor, values: Tensor, metadata: dict[str, str]) -> tuple[Tensor, ...] | None:
    """The same of a file of `UNIFORM_VERSION`."""
    if keys.shape != values.shape or keys.dim() != 5:
        return None
    entries, num_voco = keys.shape[1], keys.shape[3]
    if metadata.get("num_voco") != str(num_voco) or not _has_dtype(keys, metadata):
        return None
    keys, values = (tensor.transpose(2, 3).flatten(1, 2) for tensor in (keys, values))
    return keys, values, torch.full((entries,), num_voco)


def _has_dtype(keys: Tensor, metadata: dict[str, str]) -> bool:
    return metadata.get("dtype") == str(keys.dtype).removeprefix("torch.")


def fits(keys: Tensor, values: Tensor, counts: Tensor, kv_shape: tuple[int, int, int]) -> bool:
    """Whether tensors can be those of a cache of a model with so many layers, heads, numbers a head."""
    return (
        (keys.shape, keys.dtype) == (values.shape, values.dtype)
        and keys.dtype in DTYPES
        and keys.dim() == 4
        and (keys.shape[0], *keys.shape[2:]) == kv_shape
        and counts.dtype == torch.long
        and bool((counts >= 1).all())
        and bool((counts <= keys.shape[1]).all())
        and int(counts.sum()) == keys.shape[1]
    )


def is_finite(tensor: Tensor) -> bool:
    """By its extremes, which nan and inf show in: a twentieth of what `isfinite` of every number takes."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def checksum_of(*tensors: Tensor) -> str:
    """CRC-32 of the bytes of all, in hexadecimal: it finds every error of up to 32 bits in a row, at GBs a second."""
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def check_metadata(file: str | Path, metadata: dict[str, str], fingerprint: str) -> int:
    """Refuse what no cache of the model with this fingerprint says; the format version."""
    versions = {str(version): version for version in (UNIFORM_VERSION, FORMAT_VERSION)}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: is not a VoCo cache: give a file that VoCoCache.save wrote")
    if metadata.get("format_version") not in versions:
        raise CheckpointError(
            f"{file}: has cache format {metadata.get('format_version')}, this version reads {' and '.join(versions)}:"
            " compress the images again"
        )
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{file}: was made by another model (fingerprint {str(metadata.get('fingerprint'))[:12]}, this model has"
            f" {fingerprint[:12]}): load the model that made it or compress the images again"
        )
    return versions[metadata["format_version"]]
