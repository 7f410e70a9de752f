"""Blocks of samples, filled with samples that look at the same image or clip.

A group are the samples of one medium that stand together, at most as many as a block has; a medium with more has
several. Blocks are filled with whole groups, so that a forward pass of whole blocks has every image of a group to
itself, whatever the number of processes. Of blocks of 4:

    groups of 4, 3, 1, 2, 2     [a a a a] [b b b c] [d d e e]
    groups of 3, 3, 2           [a a a b] [b b c c]              nothing fits beside 3: the last ones are cut
"""

import numpy as np


def num_encoded(medium: np.ndarray, media: np.ndarray, share_media: int) -> int:
    """Images or clips that are computed in an epoch where at most so many records share each, at least.

    Args:
        medium: `[records]` int64, equal where they look at the same; 0 = at nothing.
        media: `[records]`, the images or clips of each.
        share_media: 1: each record has its own.
    """
    media, medium = media[medium != 0], medium[medium != 0]
    _, first, records = np.unique(medium, return_index=True, return_counts=True)
    return int((-(-records // share_media) * media[first]).sum())


def blocks_of_media(
    samples: np.ndarray, medium: np.ndarray, size: int, lengths: np.ndarray | None, generator: np.random.Generator
) -> np.ndarray:
    """Divide samples into blocks.

    Args:
        samples: `[samples]` in random order, which decides the samples of each group; a multiple of `size`.
        medium: Of every sample there is, int64, equal where they look at the same; 0 = at nothing.
        size: Samples of a block.
        lengths: Of every sample there is: groups of like length come together. None: any groups.
        generator: Of what else is drawn.

    Returns:
        `[blocks, size]`; the samples of a group are neighbors.
    """
    samples = samples[np.argsort(medium[samples], kind="stable")]
    starts, sizes = _groups(medium[samples], size)
    shuffled = generator.permutation(len(starts))
    if lengths is not None and len(starts):
        length = np.add.reduceat(lengths[samples].astype(np.float64), starts) / sizes
        shuffled = shuffled[np.argsort(length[shuffled], kind="stable")]
    starts, sizes = starts[shuffled], sizes[shuffled]
    groups = {number: starts[sizes == number] for number in range(size, 0, -1)}
    places, left_over = _filled(groups, size, generator), []
    for number, begins in groups.items():
        left_over.append((begins[:, None] + np.arange(number)).ravel())
    return samples[np.concatenate([*places, np.concatenate(left_over).reshape(-1, size)])]


def _groups(medium: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each group begins among samples that are sorted by medium, and its size; each without any is a group."""
    everything = np.arange(len(medium))
    is_first = np.diff(medium, prepend=medium[:1] - 1) != 0
    place = everything - np.maximum.accumulate(np.where(is_first, everything, 0))
    starts = np.flatnonzero((place % size == 0) | (medium == 0))
    return starts, np.diff(starts, append=len(medium))


def _filled(groups: dict[int, np.ndarray], size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Blocks of whole groups, the largest groups first: `[blocks, size]` each; they are taken out of `groups`.

    Args:
        groups: Size of a group, descending -> where the groups of this size begin.
        size: Of a block.
        generator: Chooses which groups go into blocks of one pattern; their order stays.
    """
    blocks = []
    for largest in groups:
        while len(groups[largest]):
            pattern, room = {}, size
            for number in (number for number in groups if number <= largest):
                if count := min(room // number, len(groups[number])):
                    pattern[number], room = count, room - count * number
            if room:
                break  # what is left of this size is cut
            times = min(len(groups[number]) // count for number, count in pattern.items())
            parts = []
            for number, count in pattern.items():
                chosen = np.zeros(len(groups[number]), dtype=bool)
                chosen[generator.choice(len(chosen), times * count, replace=False)] = True
                begins, groups[number] = groups[number][chosen], groups[number][~chosen]
                parts.append((begins[:, None] + np.arange(number)).reshape(times, count * number))
            blocks.append(np.concatenate(parts, axis=1))
    return blocks
