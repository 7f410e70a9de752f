"""Elastic VoCo: the number of VoCo tokens is drawn anew all through training, so that one model serves every number.

The first n tokens of a cache are the cache of n tokens (VoCo tokens are causal among themselves), so a model trained
with many n can be truncated to any of them. The numbers are a pure function of the seed, the step and a row's place
in the global batch: the same after a resume, and however the batch is divided over processes and accumulation steps.
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
    """

    choices: Sequence[int]
    draw: str
    group_size: int
    seed: int

    def __call__(self, step: int, first: int, count: int) -> Tensor:
        """Numbers for `count` rows of a global batch from its `first`-th on, after `step` steps: int64 `[count]`."""
        random = np.random.default_rng([self.seed, step])
        drawn = random.choice(np.asarray(self.choices), size=1 if self.draw == "batch" else self.group_size)
        return torch.from_numpy(np.broadcast_to(drawn, self.group_size)[first : first + count].astype(np.int64))
