"""The order in which samples are seen: a pure function of the seed and the epoch.

`GroupedSampler` knows three orders. `none`: shuffled. `length`: every run of `group_size` consecutive samples (one
global batch) has samples of like length, so that little is padded. `modality` (LLaVA-1.5's): besides, a global batch is
all image rows or all text-only rows; the few left over at the end are mixed. Whole groups are shuffled, and so are the
samples inside one, so that each process gets its fair share of long ones.

Either way samples about the same image or clip can be made to stand together (`voco_llama.training.sharing`).

`StreamSampler` orders rows that are read in place from files: nearly as they stand there.

Either way all processes go by one order, whatever their number, and each takes its batches of it. So a run that goes on
skips indices, not records.
"""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from voco_llama.choices import GROUPINGS, require_choice
from voco_llama.data.mixture import Mixture
from voco_llama.training.sharing import blocks_of_media

MEGABATCH = 50
"""Groups among which samples are sorted by length: larger is tidier, smaller is more random (LLaVA's value)."""


class EpochSampler(Sampler[int]):
    """Indices of one epoch after the other; `set_epoch` chooses the one that the next iteration is.

    Attributes:
        rows: Indices of an epoch: the last ones are left out, or the first ones come again. None: each comes once.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0
        self.rows: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """The Trainer's loop, and its callback, say it before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples if self.rows is None else self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(np.resize(self.order(self.epoch), len(self)).tolist())

    @abstractmethod
    def order(self, epoch: int) -> np.ndarray:
        """Every index once, `[samples]` int64, in the order of that epoch."""


class GroupedSampler(EpochSampler):
    """Samples of like length or kind together, and blocks of samples about the same thing.

    Consecutive runs of `group_size` indices are what one optimizer step sees, whatever the number of processes and
    accumulation steps among which they are divided. Runs of `share_media` indices, counted from the first, are blocks;
    a forward pass of a multiple of so many rows has whole ones.

    Args:
        grouping: One of `voco_llama.choices.GROUPINGS`.
        lengths: `[samples]`, any measure of length.
        is_text_only: `[samples]` bool.
        group_size: Samples of a global batch; a multiple of `share_media`.
        seed: Of the order.
        share_media: Samples of a block: as many samples of one medium, at most, stand together.
        medium: `[samples]` int64, equal where they look at the same, 0 = at nothing; None where `share_media` is 1.
    """

    def __init__(
        self,
        grouping: str,
        lengths: np.ndarray,
        is_text_only: np.ndarray,
        group_size: int,
        seed: int,
        share_media: int = 1,
        medium: np.ndarray | None = None,
    ) -> None:
        super().__init__(len(lengths), seed)
        require_choice("data.grouping", grouping, GROUPINGS)
        self.grouping = grouping
        self.lengths = np.asarray(lengths)
        self.is_text_only = np.asarray(is_text_only, dtype=bool)
        self.group_size = group_size
        self.share_media = share_media
        self.medium = medium

    def order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        blocks, rest = self._blocks(generator)
        return np.concatenate([blocks[self._order_of_blocks(blocks, generator)].ravel(), rest])

    def _blocks(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Blocks, `[blocks, share_media]`, and the few samples that fill none of their kind."""
        everything = np.arange(self.num_samples)
        if self.share_media == 1:
            return everything[:, None], everything[:0]
        kinds = [everything]
        if self.grouping == "modality":
            kinds = [everything[self.is_text_only], everything[~self.is_text_only]]
        lengths = None if self.grouping == "none" else self.lengths
        blocks, rests = [], []
        for kind in kinds:
            shuffled = generator.permutation(kind)
            num_rest = len(kind) % self.share_media
            rests.append(shuffled[:num_rest])
            blocks.append(blocks_of_media(shuffled[num_rest:], self.medium, self.share_media, lengths, generator))
        return np.concatenate(blocks), generator.permutation(np.concatenate(rests))

    def _order_of_blocks(self, blocks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """`[blocks]`: their numbers, grouped."""
        everything = np.arange(len(blocks))
        if self.grouping == "none":
            return generator.permutation(everything)
        lengths, kinds = self.lengths[blocks].mean(axis=1), [everything]
        if self.grouping == "modality":
            is_text_only = self.is_text_only[blocks].all(axis=1)
            kinds = [everything[is_text_only], everything[~is_text_only]]
        groups, left_over = [], []
        for kind in kinds:
            whole, rest = self._groups_of_like_length(kind, lengths, generator)
            groups += whole
            left_over.append(rest)
        generator.shuffle(groups)
        return np.concatenate([*groups, generator.permutation(np.concatenate(left_over))])

    def _groups_of_like_length(
        self, blocks: np.ndarray, lengths: np.ndarray, generator: np.random.Generator
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Blocks of whole global batches, and those that fill none."""
        size = max(self.group_size // self.share_media, 1)
        blocks = generator.permutation(blocks)
        num_whole = len(blocks) // size * size
        blocks, rest = blocks[:num_whole], blocks[num_whole:]
        groups = []
        for start in range(0, num_whole, MEGABATCH * size):
            megabatch = blocks[start : start + MEGABATCH * size]
            megabatch = megabatch[np.argsort(-lengths[megabatch], kind="stable")]
            groups += [generator.permutation(group) for group in np.split(megabatch, len(megabatch) // size)]
        return groups, rest


class StreamSampler(EpochSampler):
    """An order for which few row groups need to be held at a time.

    The row groups of each source are shuffled, and cut into blocks of about `buffer` rows (whole row groups); rows are
    shuffled in each block. Sources are mixed at random, evenly over the epoch. A record that a weight has several times
    in an epoch comes once in each pass over its source.

    Args:
        mixture: Of readers with `group_starts`, not shuffled.
        buffer: A block begins with the first row group after so many rows. So it has fewer rows than these and those
            of the largest row group together, rows that the mixture leaves out included.
        seed: Of the order.
    """

    def __init__(self, mixture: Mixture, buffer: int, seed: int) -> None:
        super().__init__(len(mixture), seed)
        self.buffer = buffer
        self._sources = [
            _passes(entries, records, reader.group_starts)
            for (entries, records), reader in zip(mixture.entries_of_sources(), mixture.readers, strict=True)
        ]

    def order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        sources = [
            np.concatenate([self._order_of_pass(groups, generator) for groups in passes]) for passes in self._sources
        ]
        whose = generator.permutation(np.repeat(np.arange(len(sources)), [len(entries) for entries in sources]))
        order = np.empty(self.num_samples, dtype=np.int64)
        for number, entries in enumerate(sources):
            order[whose == number] = entries
        return order

    def _order_of_pass(self, groups: list[tuple[int, np.ndarray]], generator: np.random.Generator) -> np.ndarray:
        groups = [groups[place] for place in generator.permutation(len(groups))]
        rows = np.array([num_rows for num_rows, _ in groups])
        block = np.repeat((np.cumsum(rows) - rows) // self.buffer, [len(entries) for _, entries in groups])
        entries = np.concatenate([entries for _, entries in groups])
        return entries[np.lexsort((generator.random(len(entries)), block))]


def _passes(entries: np.ndarray, records: np.ndarray, group_starts: np.ndarray) -> list[list[tuple[int, np.ndarray]]]:
    """Of a source whose records are ascending: for each pass over it, each row group's rows in the file and entries."""
    turn = np.arange(len(records)) - np.searchsorted(records, records)
    passes = []
    for number in range(int(turn.max()) + 1):
        chosen = turn == number
        group = np.searchsorted(group_starts, records[chosen], side="right") - 1
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        num_rows = np.diff(group_starts)[group[starts]]
        passes.append(list(zip(num_rows.tolist(), np.split(entries[chosen], starts[1:]), strict=True)))
    return passes
