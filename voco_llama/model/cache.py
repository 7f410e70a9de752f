"""The VoCo cache: the keys and values of the VoCo tokens, all that the language model keeps of an image.

Every entry (an image, a video frame) is compressed alone, so its VoCo keys are rotated to the positions 0..N-1.
Rotary attention depends on differences only: the keys at positions p..p+N-1 are these keys rotated by p. An entry
is therefore relocatable, and any entries can be put together in any order. VoCo tokens are causal among
themselves, so the first n of N tokens are the cache of n tokens, and entries may have unequal numbers of them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from voco_llama.errors import CheckpointError, refused_as
from voco_llama.files import written_aside
from voco_llama.model.cache_file import (
    CHECKSUM,
    FORMAT,
    FORMAT_VERSION,
    UNIFORM_VERSION,
    as_described,
    check_metadata,
    checksum_of,
    fits,
    is_finite,
    of_uniform,
)

SAMPLES = 64
"""Of each weight, in a fingerprint."""
_NOT_IDENTITY = ("dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "architectures")


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


def places_in_entries(counts: Tensor) -> Tensor:
    """Which of its entry's tokens each token is, from 0 on, int64 `[tokens]`; `counts` int64 `[entries]`."""
    starts = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) - starts.repeat_interleave(counts)


@dataclass(frozen=True, repr=False)
class VoCoCache:
    """Keys and values of compressed segments: the VoCo tokens of all entries, one entry after another.

    Attributes:
        keys: `[layers, tokens, kv_heads, head_dim]`, those of each entry rotated to positions 0..n-1.
        values: The same shape.
        counts: int64 `[entries]`, on the host: VoCo tokens of each entry.
        fingerprint: Of the model that compressed them (`VoCoLlama.fingerprint`).
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    fingerprint: str

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.counts)

    def __repr__(self) -> str:
        layers, _, heads, dimension = self.keys.shape
        return (
            f"VoCoCache({len(self)} entries of {self.described_counts} VoCo tokens, {layers} layers, {heads} heads of"
            f" {dimension}, {str(self.keys.dtype).removeprefix('torch.')} on {self.keys.device}, model"
            f" {self.fingerprint[:12]})"
        )

    @property
    def described_counts(self) -> str:
        """VoCo tokens of an entry, in words: `4`, or `1 to 4`."""
        fewest, most = (int(count) for count in self.counts.aminmax()) if len(self) else (0, 0)
        return str(most) if fewest == most else f"{fewest} to {most}"

    @property
    def num_voco(self) -> int:
        """VoCo tokens of an entry, where all have as many.

        Raises:
            CheckpointError: They have not: `counts` says how many each has.
        """
        if len(self) and bool((self.counts != self.counts[0]).any()):
            raise CheckpointError(
                f"the cache has entries of {self.described_counts} VoCo tokens, no one number: use its counts"
            )
        return int(self.counts[0]) if len(self) else 0

    @property
    def num_bytes(self) -> int:
        """Size of all keys and values in bytes."""
        return 2 * self.keys.numel() * self.keys.element_size()

    @property
    def bytes_per_entry(self) -> float:
        """Mean size of the keys and values of an entry in bytes; 0 where there is none."""
        return self.num_bytes / max(1, len(self))

    def __getitem__(self, entries: int | slice | Sequence[int] | Tensor) -> "VoCoCache":
        """Some entries, in the order asked for and as often as asked for, as a cache of their own.

        Raises:
            NoSuchEntry: There is no such entry.
        """
        if isinstance(entries, slice) and (entries.step or 1) == 1:  # neighbours: no copy
            first, last, _ = entries.indices(len(self))
            last = max(first, last)
            tokens = slice(int(self.counts[:first].sum()), int(self.counts[:last].sum()))
            return VoCoCache(self.keys[:, tokens], self.values[:, tokens], self.counts[first:last], self.fingerprint)
        places = torch.as_tensor(range(len(self))[entries] if isinstance(entries, slice) else entries).reshape(-1)
        if places.dtype == torch.bool and len(places) == len(self):
            places = places.nonzero()[:, 0]
        are_numbers = not (places.dtype == torch.bool or places.dtype.is_floating_point) or len(places) == 0
        if not are_numbers or bool(((places < -len(self)) | (places >= len(self))).any()):
            raise NoSuchEntry(
                f"a cache of {len(self)} entries has no {places.tolist()}: give numbers below {len(self)}"
            )
        places = places.to("cpu", torch.long)
        counts, starts = self.counts[places], (self.counts.cumsum(0) - self.counts)[places]
        return self._of(starts.repeat_interleave(counts) + places_in_entries(counts), counts)

    def _of(self, tokens: Tensor, counts: Tensor) -> "VoCoCache":
        """Copies of some tokens, int64 on the host."""
        tokens = tokens.to(self.keys.device)
        return VoCoCache(
            self.keys.index_select(1, tokens), self.values.index_select(1, tokens), counts, self.fingerprint
        )

    @classmethod
    def cat(cls, caches: Sequence["VoCoCache"]) -> "VoCoCache":
        """All entries of several caches, in order; they may have unequal numbers of VoCo tokens.

        Raises:
            CheckpointError: They come from different models.
        """
        caches = list(caches)
        if not caches:
            raise CheckpointError("there is no cache to concatenate: pass at least one")
        if any(cache.fingerprint != caches[0].fingerprint for cache in caches):
            raise CheckpointError("the caches come from different models: compress all images with one model")
        return cls(
            torch.cat([cache.keys for cache in caches], dim=1),
            torch.cat([cache.values for cache in caches], dim=1),
            torch.cat([cache.counts for cache in caches]),
            caches[0].fingerprint,
        )

    def truncate(self, num_voco: int | Sequence[int] | Tensor) -> "VoCoCache":
        """The cache of the first VoCo tokens of every entry, a copy.

        Args:
            num_voco: How many of each, or a number for each entry.

        Raises:
            CheckpointError: An entry has not as many, or the numbers are not one an entry.
        """
        kept = torch.as_tensor(num_voco, dtype=torch.long).cpu()
        if kept.dim() and len(kept) != len(self):
            raise CheckpointError(f"{len(kept)} numbers of VoCo tokens for {len(self)} entries: give one an entry")
        kept = kept.expand(len(self))
        if bool(((kept < 1) | (kept > self.counts)).any()):
            worst = int(((kept < 1) | (kept > self.counts)).nonzero()[0, 0])
            raise CheckpointError(
                f"cannot truncate {int(self.counts[worst])} VoCo tokens to {int(kept[worst])} (entry {worst}): ask for"
                " 1 to that many"
            )
        places = places_in_entries(self.counts)
        return self._of((places < kept.repeat_interleave(self.counts)).nonzero()[:, 0], kept.clone())

    def to(self, *target: torch.device | torch.dtype | str) -> "VoCoCache":
        """The cache on another device or in another dtype."""
        return VoCoCache(self.keys.to(*target), self.values.to(*target), self.counts, self.fingerprint)

    def save(self, file: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        It holds the tensors, and format version, fingerprint, dtype and a checksum of the tensors as metadata.
        """
        tensors = {name: getattr(self, name).contiguous() for name in ("keys", "values", "counts")}
        described = self._metadata() | {CHECKSUM: checksum_of(*tensors.values())}
        with written_aside(Path(file)) as aside:
            save_file(tensors, aside, metadata={"voco_llama": json.dumps(described)})

    def _metadata(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fingerprint": self.fingerprint,
            "entries": str(len(self)),
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
            version = check_metadata(file, metadata, model.fingerprint())
            names = ("keys", "values") if version == UNIFORM_VERSION else ("keys", "values", "counts")
            tensors = [opened.get_tensor(name) for name in names]
        kept = of_uniform(*tensors, metadata) if version == UNIFORM_VERSION else as_described(*tensors, metadata)
        if kept is None or not fits(*kept, model.config.kv_shape):
            layers, heads, head_dim = model.config.kv_shape
            raise CheckpointError(
                f"{file}: its tensors {list(tensors[0].shape)} do not agree with its description or with the model"
                f" ({layers} layers, {heads} heads of {head_dim}): compress the images again"
            )
        checksum = checksum_of(*tensors)
        if metadata.get(CHECKSUM, checksum if version == UNIFORM_VERSION else None) != checksum:
            raise CheckpointError(f"{file}: damaged, its tensors are not what was saved: compress the images again")
        if not all(map(is_finite, tensors[:2])):
            raise CheckpointError(f"{file}: holds numbers that are not finite (nan, inf): compress the images again")
        return cls(*kept, metadata["fingerprint"]).to(model.device)
