"""Elastic VoCo: the number of VoCo tokens is drawn anew all through training, so that one model serves every number.

The first n tokens of a cache are the cache of n tokens (VoCo tokens are causal among themselves), so a model trained
with many n can be truncated to any of them. The numbers are a pure function of the seed, the step and a row's place
in the global batch: the same after a resume, and however the batch is divided over processes and accumulation steps.

One compression can be read several times in a step, through the fewest, the most, and numbers drawn between: the
sandwich rule of slimmable networks (Yu and Huang, 2019, arXiv 1903.05134). In two steps that costs text alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ElasticDraw:
    """Draws numbers of VoCo tokens.

    Attributes:
        choices: Numbers to draw from, all equally likely.
        draw: `row`: one for each row. `batch`: one for the whole global batch.
        group_size: Rows of a global batch.
        seed: Of the run.
        readings: Times that each row is read. 1: through a number drawn. More: through the smallest and the largest,
            and, besides, different ones drawn between.
    """

    choices: Sequence[int]
    draw: str
    group_size: int
    seed: int
    readings: int = 1

    def __call__(self, step: int, first: int, count: int) -> Tensor:
        """Numbers for `count` rows of a global batch from its `first`-th on, after `step` steps.

        Returns:
            int64 `[readings, count]`, ascending if there are several.
        """
        random = np.random.default_rng([self.seed, step])
        size = 1 if self.draw == "batch" else self.group_size
        if self.readings == 1:
            drawn = random.choice(np.asarray(self.choices), size=size)[None]
        else:
            fewest, *between, most = sorted(set(self.choices))
            order = random.permuted(np.tile(between, (size, 1)), axis=1)[:, : self.readings - 2]
            ends = np.full((2, size), [[fewest], [most]])
            drawn = np.sort(np.concatenate([ends, order.T.reshape(-1, size)]), axis=0)
        numbers = np.broadcast_to(drawn, (self.readings, self.group_size))[:, first : first + count]
        return torch.from_numpy(numbers.astype(np.int64))
