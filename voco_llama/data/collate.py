"""From samples to a batch of the trainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from voco_llama.layout import ROW_FIELDS, Row, pad_rows
from voco_llama.tokens import TokenIds


@dataclass(frozen=True)
class Collator:
    """Pads rows to the longest, and joins what else they bring (images, a teacher's words) in row order.

    Attributes:
        tokens: For the id of padding.
        side: Where padding stands.
    """

    tokens: TokenIds
    side: Literal["left", "right"] = "right"

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Samples of `VoCoProcessor.row` to `[batch, length]` fields and `pixel_values` `[images, 3, H, W]`."""
        rows = [Row(**{name: sample[name] for name in ROW_FIELDS}) for sample in samples]
        batch = pad_rows(rows, self.tokens, self.side)
        besides = [name for name in samples[0] if name not in ROW_FIELDS]
        return batch | {name: torch.cat([sample[name] for sample in samples]) for name in besides}
