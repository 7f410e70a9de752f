"""The order of samples: a pure function of seed and epoch, grouped as asked."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from voco_llama.data.mixture import Mixture
from voco_llama.errors import SettingsError
from voco_llama.training.sampling import GroupedSampler, StreamSampler

SAMPLES, GROUP = 1000, 8
LENGTHS = np.random.default_rng(0).integers(10, 500, SAMPLES)
TEXT_ONLY = np.random.default_rng(1).random(SAMPLES) < 0.2


def order(grouping: str, seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = GroupedSampler(grouping, LENGTHS, TEXT_ONLY, GROUP, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def groups(grouping: str) -> np.ndarray:
    indices = np.array(order(grouping))
    return indices[: SAMPLES // GROUP * GROUP].reshape(-1, GROUP)


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
def test_every_sample_once_and_the_same_again(grouping):
    first = order(grouping)
    assert sorted(first) == list(range(SAMPLES))
    assert order(grouping) == first
    assert order(grouping, epoch=1) != first
    assert order(grouping, seed=1) != first
    assert len(GroupedSampler(grouping, LENGTHS, TEXT_ONLY, GROUP, 0)) == SAMPLES


def test_epochs_do_not_depend_on_those_before():
    sampler = GroupedSampler("modality", LENGTHS, TEXT_ONLY, GROUP, 0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        list(sampler)
    assert list(sampler) == order("modality", epoch=2)


@pytest.mark.parametrize("grouping", ["length", "modality"])
def test_a_group_has_samples_of_like_length(grouping):
    def spread(grouping: str) -> float:
        return np.ptp(LENGTHS[groups(grouping)], axis=1).mean()

    assert spread(grouping) < spread("none") / 10
    inside = LENGTHS[groups(grouping)]
    assert not (np.diff(inside, axis=1) <= 0).all(axis=1).any()  # shuffled inside a group
    firsts = inside.mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.3  # and among groups


def test_a_group_has_one_modality():
    kinds = TEXT_ONLY[groups("modality")]
    mixed = kinds.any(axis=1) & ~kinds.all(axis=1)
    assert mixed.sum() <= 2
    assert mixed[:-2].sum() == 0  # what is left over stands at the end
    mixed_by_length = TEXT_ONLY[groups("length")]
    assert (mixed_by_length.any(axis=1) & ~mixed_by_length.all(axis=1)).mean() > 0.5


def test_fewer_samples_than_a_group():
    sampler = GroupedSampler("modality", LENGTHS[:5], TEXT_ONLY[:5], GROUP, 0)
    assert sorted(sampler) == list(range(5))


def test_an_unknown_grouping():
    with pytest.raises(SettingsError, match="choose one of none, length, modality"):
        GroupedSampler("size", LENGTHS, TEXT_ONLY, GROUP, 0)


class Rows:
    """A streamed reader of numbers in row groups of uneven sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.file = "rows"
        self.group_starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __getitem__(self, index: int) -> int:
        return index


SIZES = [5, 1, 7, 3, 0, 6, 4, 8, 2, 5, 7, 6]


def streamed(*sizes: list[int], buffer: int = 8, seed: int = 0, **kwargs) -> tuple[Mixture, StreamSampler]:
    mixture = Mixture([Rows(some) for some in sizes], shuffle=False, **kwargs)
    return mixture, StreamSampler(mixture, buffer, seed)


def test_a_stream_has_every_row_once_and_the_same_again():
    mixture, sampler = streamed(SIZES, [4] * 10)
    first = sampler.order(0)
    assert sorted(first) == list(range(len(mixture))) == list(range(94))
    assert len(sampler) == 94
    assert list(sampler) == sampler.order(0).tolist() == first.tolist()
    assert (streamed(SIZES, [4] * 10)[1].order(0) == first).all()
    assert (streamed(SIZES, [4] * 10, seed=1)[1].order(0) != first).any()
    sampler.set_epoch(1)
    assert list(sampler) == sampler.order(1).tolist() != first.tolist()
    assert sorted(sampler.order(1)) == list(range(94))


def test_a_stream_needs_few_row_groups_at_a_time():
    """Whoever holds `buffer` rows and those of one row group reads each row group once."""
    for options in ({}, {"limits": [20]}, {"weights": [0.4]}, {"buffer": 1}):
        mixture, sampler = streamed(SIZES, **options)
        starts = mixture.readers[0].group_starts
        for epoch in range(3):
            rows = np.array([mixture[i] for i in sampler.order(epoch)])
            group = np.searchsorted(starts, rows, side="right") - 1
            for i, here in enumerate(group):
                still_needed = set(group[:i]) & set(group[i:]) | {here}
                assert sum(SIZES[g] for g in still_needed) < sampler.buffer + max(SIZES)
    rows = streamed(SIZES, buffer=20)[1].order(0)
    assert (np.abs(np.diff(rows)) > 1).mean() > 0.7  # and yet rows are shuffled


def test_sources_of_a_stream_are_mixed_evenly_and_passes_follow_each_other():
    mixture, sampler = streamed([4] * 50, [4] * 50, weights=[2.5, 1.0])
    origins = np.array([mixture.origin(i) for i in sampler.order(0)])
    assert mixture.num_records == [500, 200]
    for part in np.split(origins[:, 0], 7):
        assert 15 <= (part == 1).sum() <= 42  # of 100, 29 on average
    of_first = origins[origins[:, 0] == 0, 1]
    assert sorted(of_first[:200]) == sorted(of_first[200:400]) == list(range(200))
    assert len(set(of_first[400:])) == 100
    assert of_first[:200].tolist() != of_first[200:400].tolist()


# ---- samples about the same thing


def test_the_order_without_sharing_is_what_it_was():
    """As before there was sharing: runs that began then go on."""
    digests = {}
    for grouping in ("none", "length", "modality"):
        orders = np.concatenate([order(grouping, 3, epoch) for epoch in range(3)]).astype("<i8")
        digests[grouping] = hashlib.sha256(orders.tobytes()).hexdigest()[:8]
    assert digests == {"none": "6f21c047", "length": "e31e3c6c", "modality": "db8b2b65"}


BLOCK = 4
MEDIUM = np.where(TEXT_ONLY, 0, np.random.default_rng(2).integers(1, 400, SAMPLES))
"""About two samples a medium, at most seven or so."""


def shared(grouping: str, epoch: int = 0, group: int = GROUP, medium: np.ndarray = MEDIUM) -> np.ndarray:
    text_only = medium == 0
    sampler = GroupedSampler(grouping, LENGTHS[: len(medium)], text_only, group, 0, BLOCK, medium)
    return sampler.order(epoch)


def media_of_blocks(order: np.ndarray, medium: np.ndarray = MEDIUM) -> list[list[int]]:
    """What each block looks at, text left out, most frequent first."""
    blocks = medium[order[: len(order) // BLOCK * BLOCK]].reshape(-1, BLOCK)
    return [sorted(Counter(block[block > 0].tolist()).values(), reverse=True) for block in blocks]


@pytest.mark.parametrize("grouping", ["none", "length", "modality"])
def test_samples_of_a_medium_stand_in_whole_blocks(grouping):
    first = shared(grouping)
    assert sorted(first) == list(range(SAMPLES))
    assert shared(grouping).tolist() == first.tolist() != shared(grouping, epoch=1).tolist()
    counts = np.bincount(MEDIUM)[1:]
    fewest = int((-(-counts // BLOCK)).sum())
    assert sum(map(len, media_of_blocks(first))) <= fewest + 2  # two groups, at most, were cut or left over
    if grouping == "modality":
        groups = TEXT_ONLY[first[: SAMPLES // GROUP * GROUP]].reshape(-1, GROUP)
        mixed = groups.any(axis=1) & ~groups.all(axis=1)
        assert mixed[:-3].sum() == 0


def test_who_shares_is_drawn_anew_in_each_epoch():
    medium = np.repeat(np.arange(1, 6), 2 * BLOCK)
    blocks = [{frozenset(block) for block in shared("none", e, medium=medium).reshape(-1, BLOCK)} for e in range(5)]
    assert len(set.union(*blocks)) > 30  # of 50; 10 if it were always the same
    assert all(len(set(medium[list(block)])) == 1 for block in set.union(*blocks))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4, 3, 1, 2, 2], [[2, 2], [3, 1], [4]]),
        ([2, 1, 3, 3], [[3, 1], [3, 1]]),  # of the 9 samples one is left over, here of the group of 2
        ([3, 3, 3, 3], [[2, 2], [3, 1], [3, 1]]),  # one is cut
        ([9], [[4], [4]]),
    ],
)
def test_blocks_are_filled_with_whole_groups(sizes, expected):
    medium = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    found = [sorted(media_of_blocks(shared("none", epoch, medium=medium), medium)) for epoch in range(20)]
    assert expected in found
    if sum(sizes) % BLOCK == 0:
        assert all(blocks == found[0] for blocks in found)


def test_text_fills_blocks_up():
    medium = np.repeat([1, 2, 0], [3, 3, 2])
    assert media_of_blocks(shared("none", medium=medium), medium) == [[3], [3]]


def test_blocks_do_not_depend_on_the_global_batch():
    """The same groups of samples, however many processes there are: only the order of blocks differs."""
    one, other = ({frozenset(b) for b in shared("length", group=g).reshape(-1, BLOCK)} for g in (8, 32))
    assert one == other
