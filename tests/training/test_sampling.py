"""The order of samples: a pure function of seed and epoch, grouped as asked."""

import numpy as np
import pytest

from voco_llama.errors import SettingsError
from voco_llama.training.sampling import GroupedSampler

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
