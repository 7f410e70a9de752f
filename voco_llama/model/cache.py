"""The VoCo cache: the keys and values of the VoCo tokens, all that the language model keeps of an image.

Every entry (an image, a video frame) is compressed alone, so its VoCo keys are rotated to the positions 0..N-1.
Rotary attention depends on differences only: the keys at positions p..p+N-1 are these keys rotated by p. An entry
is therefore relocatable, and any entries can be put together in any order. VoCo tokens are causal among
themselves, so the first n of N tokens are the cache of n tokens.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from voco_llama.errors import CheckpointError, refused_as
from voco_llama.files import written_aside

SAMPLES = 64
"""Of each weight, in a fingerprint."""
_NOT_IDENTITY = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "architectures")

FORMAT = "voco_llama.cache"
FORMAT_VERSION = 1
CHECKSUM = "checksum"
"""Of the metadata; files of before have none, and are read without."""


def rotate_keys(keys: Tensor, offset: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Move keys along the text axis by rotating them.

    Args:
        keys: `[..., head_dim]`, rotated for some position p, in the half-split convention of Llama.
        offset: Positions to move by, broadcastable to `keys.shape[:-1]`.
        inverse_frequency: `[head_dim / 2]`, float32, of the model's rotary embedding.

    Returns:
        The keys as they would be at p + offset, in the dtype of `keys`; the rotation is done in float32.
    """
    angle = offset[..., None].float() * inverse_frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = keys.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(keys.dtype)


@torch.no_grad()
def fingerprint(model: "torch.nn.Module") -> str:
    """What tells a `VoCoLlama` from every other: a cache is read again only by the model that wrote it.

    A hash of the configuration and of samples of every weight; the same in float32 and bfloat16. VoCo's embedding
    enters whole: it may be all that was trained.

    Nothing is remembered, the samples are read anew each time, all of them at once. Neither a tensor's address nor its
    version counter tells of every change (peft merges adapters into `weight.data`, DeepSpeed steps on buffers that
    parameters are views of), and with a stale fingerprint a cache would be read wrongly without a word.
    """
    config = model.config
    described = {
        "text": {k: v for k, v in config.text_config.to_dict().items() if k not in _NOT_IDENTITY},
        "vision": config.vision_config.get("vision_cfg"),
        "vision_layer": config.vision_layer,
        "segment": [config.segment_prefix_ids, config.segment_infix_ids],
        "compression": [config.segment_attention, config.voco_embeddings, config.compressor],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    samples = [model.get_input_embeddings().weight[config.voco_token_id]]
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        step = max(1, parameter.numel() // SAMPLES)
        if parameter.is_contiguous():  # one operation in place of two: there are hundreds of parameters
            samples.append(parameter.as_strided((-(-parameter.numel() // step),), (step,)))
        else:
            samples.append(parameter.flatten()[::step])
    digest.update(torch.cat(samples).to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


class NoSuchEntry(CheckpointError, IndexError):
    """An entry that a cache does not have; an `IndexError` too, which ends iteration over a cache."""


@dataclass(frozen=True, repr=False)
class VoCoCache:
    """Keys and values of compressed segments.

    Attributes:
        keys: `[layers, entries, kv_heads, N, head_dim]`, rotated to positions 0..N-1.
        values: The same shape.
        fingerprint: Of the model that compressed them (`VoCoLlama.fingerprint`).
    """

    keys: Tensor
    values: Tensor
    fingerprint: str

    def __len__(self) -> int:
        """Number of entries."""
        return self.keys.shape[1]

    def __repr__(self) -> str:
        layers, entries, heads, num_voco, dimension = self.keys.shape
        return (
            f"VoCoCache({entries} entries of {num_voco} VoCo tokens, {layers} layers, {heads} heads of {dimension},"
            f" {str(self.keys.dtype).removeprefix('torch.')} on {self.keys.device}, model {self.fingerprint[:12]})"
        )

    @property
    def num_voco(self) -> int:
        """VoCo tokens of an entry."""
        return self.keys.shape[3]

    @property
    def bytes_per_entry(self) -> int:
        """Size of the keys and values of one entry in bytes."""
        return 2 * self.keys[:, :1].numel() * self.keys.element_size()

    def __getitem__(self, entries: int | slice | Sequence[int] | Tensor) -> "VoCoCache":
        """Some entries, in the order asked for and as often as asked for, as a cache of their own.

        Raises:
            NoSuchEntry: There is no such entry.
        """
        if not isinstance(entries, slice) or (entries.step or 1) < 0:  # others a tensor takes as they are
            places = torch.as_tensor(range(len(self))[entries] if isinstance(entries, slice) else entries).reshape(-1)
            if places.dtype == torch.bool and len(places) == len(self):
                places = places.nonzero()[:, 0]
            are_numbers = not (places.dtype == torch.bool or places.dtype.is_floating_point) or len(places) == 0
            if not are_numbers or bool(((places < -len(self)) | (places >= len(self))).any()):
                raise NoSuchEntry(
                    f"a cache of {len(self)} entries has no {places.tolist()}: give numbers below {len(self)}"
                )
            entries = places.to(self.keys.device, torch.long)
        return VoCoCache(self.keys[:, entries], self.values[:, entries], self.fingerprint)

    @classmethod
    def cat(cls, caches: Sequence["VoCoCache"]) -> "VoCoCache":
        """All entries of several caches, in order.

        Raises:
            CheckpointError: They come from different models or have different numbers of VoCo tokens.
        """
        caches = list(caches)
        if not caches:
            raise CheckpointError("there is no cache to concatenate: pass at least one")
        for cache in caches[1:]:
            if cache.fingerprint != caches[0].fingerprint:
                raise CheckpointError("the caches come from different models: compress all images with one model")
            if cache.num_voco != caches[0].num_voco:
                raise CheckpointError(
                    f"the caches have {caches[0].num_voco} and {cache.num_voco} VoCo tokens an entry:"
                    " truncate them to the smaller number first"
                )
        return cls(
            torch.cat([cache.keys for cache in caches], dim=1),
            torch.cat([cache.values for cache in caches], dim=1),
            caches[0].fingerprint,
        )

    def truncate(self, num_voco: int) -> "VoCoCache":
        """The cache of the first `num_voco` VoCo tokens of every entry.

        Raises:
            CheckpointError: There are not as many.
        """
        if not 1 <= num_voco <= self.num_voco:
            raise CheckpointError(f"cannot truncate {self.num_voco} VoCo tokens to {num_voco}: ask for 1 to that many")
        return VoCoCache(self.keys[..., :num_voco, :], self.values[..., :num_voco, :], self.fingerprint)

    def to(self, *target: torch.device | torch.dtype | str) -> "VoCoCache":
        """The cache on another device or in another dtype."""
        return VoCoCache(self.keys.to(*target), self.values.to(*target), self.fingerprint)

    def save(self, file: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        It holds the tensors, and format version, fingerprint, N, dtype and a checksum of the tensors as metadata.
        """
        tensors = {"keys": self.keys.contiguous(), "values": self.values.contiguous()}
        described = self._metadata() | {CHECKSUM: _checksum(self.keys, self.values)}
        with written_aside(Path(file)) as aside:
            save_file(tensors, aside, metadata={"voco_llama": json.dumps(described)})

    def _metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fingerprint": self.fingerprint,
            "num_voco": str(self.num_voco),
            "dtype": str(self.keys.dtype).removeprefix("torch."),
        }

    @classmethod
    def load(cls, file: str | Path, model: "torch.nn.Module") -> "VoCoCache":
        """Read a cache for `model` (a `VoCoLlama`), onto its device.

        Raises:
            CheckpointError: The file is no VoCo cache, is damaged, holds numbers that are not finite, or was made by
                another model.
        """
        advice = "it is no VoCo cache, or damaged; compress the images again"
        with refused_as(CheckpointError, file, advice), safe_open(str(file), framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("voco_llama", "{}"))
            _check_metadata(file, metadata, model.fingerprint())
            keys, values = opened.get_tensor("keys"), opened.get_tensor("values")
        cache = cls(keys, values, metadata["fingerprint"])
        layers, heads, head_dim = model.config.kv_shape
        fits = (
            (keys.shape, keys.dtype) == (values.shape, values.dtype)
            and keys.dim() == 5
            and (keys.shape[0], keys.shape[2], keys.shape[4]) == (layers, heads, head_dim)
            and cache._metadata().items() <= metadata.items()
        )
        if not fits:
            raise CheckpointError(
                f"{file}: its tensors {list(keys.shape)} do not agree with its description or with the model"
                f" ({layers} layers, {heads} heads of {head_dim}): compress the images again"
            )
        if metadata.get(CHECKSUM, (checksum := _checksum(keys, values))) != checksum:
            raise CheckpointError(f"{file}: damaged, its tensors are not what was saved: compress the images again")
        if not (_is_finite(keys) and _is_finite(values)):
            raise CheckpointError(f"{file}: holds numbers that are not finite (nan, inf): compress the images again")
        return cache.to(model.device)


def _is_finite(tensor: Tensor) -> bool:
    """By its extremes, which nan and inf show in: a twentieth of what `isfinite` of every number takes."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _checksum(keys: Tensor, values: Tensor) -> str:
    """CRC-32 of the bytes of both, in hexadecimal: it finds every error of up to 32 bits in a row, at GBs a second."""
    checksum = 0
    for tensor in (keys, values):
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _check_metadata(file: str | Path, metadata: dict[str, str], fingerprint: str) -> None:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file}: is not a VoCo cache: give a file that VoCoCache.save wrote")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{file}: has cache format {metadata.get('format_version')}, this version reads {FORMAT_VERSION}:"
            " compress the images again"
        )
    if metadata.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{file}: was made by another model (fingerprint {str(metadata.get('fingerprint'))[:12]}, this model has"
            f" {fingerprint[:12]}): load the model that made it or compress the images again"
        )
