"""A batch of samples, in which every distinct image is there once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from voco_llama.layout import ROW_FIELDS, HostRows, Row, pad_rows
from voco_llama.tokens import TokenIds


@dataclass(frozen=True)
class Origins:
    """Which rows a batch has, in order: (entry of the mixture, record of its source). As `HostRows` it stays here."""

    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Collator:
    """Pads rows to the longest, finds which look at the same images, and joins what else they bring in row order.

    Attributes:
        tokens: For the id of padding.
        side: Where padding stands.
        two_steps: Batches are for a pass in two steps, whose rows stay on the host; else for a masked one.
    """

    tokens: TokenIds
    side: Literal["left", "right"] = "right"
    two_steps: bool = False

    def __call__(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
        """Samples of `VoCoProcessor.row`, with what else they bring (a teacher's words), to a batch.

        Returns:
            `pixel_values` `[different images, 3, H, W]`; `media` and `medium` as those of `HostRows`, and `[batch,
            length]` fields of rows; or, for two steps, `labels` `[batch, length]`, and all the others in `rows`, a
            `HostRows`.
        """
        rows = pad_rows(
            [Row(**{name: sample[name] for name in ROW_FIELDS}) for sample in samples], self.tokens, self.side
        )
        besides = [name for name in samples[0] if name not in (*ROW_FIELDS, "pixel_values", "image_keys", "origin")]
        batch: dict[str, Any] = {name: torch.cat([sample[name] for sample in samples]) for name in besides}
        if "origin" in samples[0]:
            batch["origins"] = Origins(tuple(sample["origin"] for sample in samples))
        batch["pixel_values"], media, medium = _distinct(samples)
        if self.two_steps:
            return {"labels": rows["labels"], "rows": HostRows(rows, media, medium)} | batch
        return rows | batch | {"media": media, "medium": medium}


def _distinct(samples: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The images of all samples, each once, and the `media` and `medium` of `HostRows`."""
    images: dict[int, Tensor] = {}
    media: dict[tuple[int, ...], int] = {(): -1}
    medium = []
    for sample in samples:
        keys = sample["image_keys"].tolist()
        for key, pixels in zip(keys, sample["pixel_values"], strict=True):
            images.setdefault(key, pixels)
        medium.append(media.setdefault(tuple(keys), len(media) - 1))
    numbers = {key: number for number, key in enumerate(images)}
    shown = [torch.tensor([numbers[key] for key in keys]) for keys in media if keys]
    return (
        torch.stack([*images.values()]) if images else samples[0]["pixel_values"],
        torch.nn.utils.rnn.pad_sequence(shown, True, -1) if shown else torch.empty(0, 0, dtype=torch.long),
        torch.tensor(medium),
    )
