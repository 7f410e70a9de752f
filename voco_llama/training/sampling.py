"""The order in which samples are seen: a pure function of the seed and the epoch.

Three orders. `none`: shuffled. `length`: every run of `group_size` consecutive samples (one global batch) has samples
of like length, so that little is padded. `modality` (LLaVA-1.5's): besides, a global batch is all image rows or all
text-only rows; the few left over at the end are mixed. Whole groups are shuffled, and so are the samples inside one,
so that each process gets its fair share of long ones.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from voco_llama.errors import SettingsError

GROUPINGS = ("none", "length", "modality")
MEGABATCH = 50
"""Groups among which samples are sorted by length: larger is tidier, smaller is more random (LLaVA's value)."""


class GroupedSampler(Sampler[int]):
    """Indices of one epoch after the other.

    The Trainer's loop calls `set_epoch` before each epoch. Consecutive runs of `group_size` indices are what one
    optimizer step sees, whatever the number of processes and accumulation steps among which they are divided.

    Args:
        grouping: One of `GROUPINGS`.
        lengths: `[samples]`, any measure of length.
        is_text_only: `[samples]` bool.
        group_size: Samples of a global batch.
        seed: Of the order.
    """

    def __init__(
        self, grouping: str, lengths: np.ndarray, is_text_only: np.ndarray, group_size: int, seed: int
    ) -> None:
        if grouping not in GROUPINGS:
            raise SettingsError(f"data.grouping is '{grouping}': choose one of {', '.join(GROUPINGS)}")
        self.grouping = grouping
        self.lengths = np.asarray(lengths)
        self.is_text_only = np.asarray(is_text_only, dtype=bool)
        self.group_size = group_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def order(self, epoch: int) -> np.ndarray:
        """Every index once, `[samples]` int64, in the order of that epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        everything = np.arange(len(self))
        if self.grouping == "none":
            return generator.permutation(everything)
        kinds = [everything]
        if self.grouping == "modality":
            kinds = [everything[self.is_text_only], everything[~self.is_text_only]]
        groups, left_over = [], []
        for kind in kinds:
            whole, rest = self._groups_of_like_length(kind, generator)
            groups += whole
            left_over.append(rest)
        generator.shuffle(groups)
        return np.concatenate([*groups, generator.permutation(np.concatenate(left_over))])

    def _groups_of_like_length(
        self, indices: np.ndarray, generator: np.random.Generator
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Whole groups, and the fewer than `group_size` samples that fill none."""
        indices = generator.permutation(indices)
        num_whole = len(indices) // self.group_size * self.group_size
        indices, rest = indices[:num_whole], indices[num_whole:]
        groups = []
        for start in range(0, num_whole, MEGABATCH * self.group_size):
            megabatch = indices[start : start + MEGABATCH * self.group_size]
            megabatch = megabatch[np.argsort(-self.lengths[megabatch], kind="stable")]
            groups += [generator.permutation(group) for group in np.split(megabatch, len(megabatch) // self.group_size)]
        return groups, rest
