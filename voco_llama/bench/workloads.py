"""What batches of a training are like: how long their texts are, and who looks at what.

No published count of mix665k's tokens was found, so that its lengths are an assumption. Its file has 1.03 GB for
665,298 records: 1,550 bytes each, of which about half are text, four characters a token, and a system prompt of 35
tokens: about 200 tokens, in a long tail. So texts are drawn from a log-normal distribution with median 150 and sigma
0.8 (mean 205), cut at 1,471 (`data.max_length` 2048 less an image). Images have 1.9 conversations, as it is estimated
of mix665k; how many one has is drawn from a geometric distribution. Records without an image (6 %) are left out.

VideoInstruct-100K has 7.5 questions a clip (100,000 on 13,303), here 7 or 8, of which 8 frames are read; a question
with its answer and the prompt is taken for 120 tokens (median, sigma 0.5).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

FEWEST = 40
"""Tokens of a text: the prompt, and something in it."""


@dataclass(frozen=True)
class Workload:
    """How batches are drawn.

    Attributes:
        median, sigma, most: Of the log-normal distribution of text tokens.
        conversations: Draws how many conversations an image or clip has.
        frames: Images of each.
    """

    median: float
    sigma: float
    most: int
    conversations: Callable[[random.Random], int]
    frames: int = 1


@dataclass(frozen=True)
class Drawn:
    """A batch: text tokens of each row, which image or clip it looks at (0, 1, ...), and the images of one of them."""

    texts: tuple[int, ...]
    medium: tuple[int, ...]
    frames: int

    @property
    def num_media(self) -> int:
        """Distinct images or clips."""
        return max(self.medium) + 1


def _geometric(mean: float) -> Callable[[random.Random], int]:
    def draw(source: random.Random) -> int:
        count = 1
        while source.random() > 1 / mean:
            count += 1
        return count

    return draw


_IMAGE_TEXT = (150.0, 0.8, 1471)
KNOWN = {
    "mix665k": Workload(*_IMAGE_TEXT, _geometric(1.9)),
    "two_each": Workload(*_IMAGE_TEXT, lambda _: 2),
    "unshared": Workload(*_IMAGE_TEXT, lambda _: 1),
    "video": Workload(120.0, 0.5, 512, lambda source: source.choice((7, 8)), frames=8),
}
"""`voco_llama.bench.settings.WORKLOADS`: as they are drawn."""


def draw(name: str, rows: int, seed: int) -> Drawn:
    """A batch of so many rows; what of an image's conversations does not fit into it is left to another batch."""
    workload, source = KNOWN[name], random.Random(f"{name} {seed}")
    medium: list[int] = []
    for number in range(rows):
        medium += [number] * workload.conversations(source)
    texts = [min(max(round(workload.median * source.lognormvariate(0, workload.sigma)), FEWEST), workload.most)
             for _ in range(rows)]  # fmt: skip
    return Drawn(tuple(texts), tuple(medium[:rows]), workload.frames)


def even(rows: int, text: int, frames: int) -> Drawn:
    """Rows of the same length, two of them about each image or clip."""
    return Drawn((text,) * rows, tuple(row // 2 for row in range(rows)), frames)
