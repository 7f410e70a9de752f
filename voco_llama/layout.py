"""Where a row is laid out: from text and segments to token ids, labels and the four vectors.

Every token of a row carries four facts, computed here once and never guessed again from token ids:

    segment   0 = text stream; s >= 1 = the s-th compressed segment of the row, its VoCo tokens included
    voco      this token is a VoCo token
    position  rotary position
    document  which packed sample the token belongs to; -1 = padding

A segment is `[prefix, vision x V, infix, voco x N]`; prefix and infix are empty except in the authors' order,
where BOS and a newline stand inside it. The module assumes text that is already tokenized, and knows nothing of
tokenizers, templates or images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from voco_llama.choices import Condition
from voco_llama.errors import DataError, ProblemKind
from voco_llama.tokens import IGNORE_INDEX, AddedTokens, TokenIds

PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class TextSpan:
    """Tokenized text. `trained[i]` says whether token i is an answer token that the loss counts."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True)
class SegmentMark:
    """One compressed segment (an image or a video frame) stands here.

    Attributes:
        num_voco: Its VoCo tokens, where it has a number of its own.
    """

    num_voco: int | None = None


Part = TextSpan | SegmentMark


@dataclass(frozen=True)
class SegmentShape:
    """What every segment of a model looks like.

    Attributes:
        num_vision: Vision tokens of one image; 0 lays out VoCo tokens alone, for reading from a cache.
        num_voco: VoCo tokens after them.
        prefix: Token ids before the vision tokens, inside the segment.
        infix: Token ids between vision and VoCo tokens.
    """

    num_vision: int
    num_voco: int
    prefix: tuple[int, ...] = ()
    infix: tuple[int, ...] = ()

    def ids(self, tokens: AddedTokens) -> list[int]:
        """Token ids of one segment, in order."""
        return [*self.prefix, *[tokens.image] * self.num_vision, *self.infix, *[tokens.voco] * self.num_voco]

    @property
    def num_compressed(self) -> int:
        """Tokens that stand before the VoCo tokens and vanish from the cache."""
        return len(self.prefix) + self.num_vision + len(self.infix)

    @property
    def cached(self) -> "SegmentShape":
        """The same segment as a cache leaves it: its VoCo tokens alone."""
        return SegmentShape(0, self.num_voco)


@dataclass(frozen=True)
class Row:
    """One laid-out row; every field is `[length]`. `voco` is bool, all others int64."""

    input_ids: Tensor
    labels: Tensor
    segment: Tensor
    voco: Tensor
    position: Tensor
    document: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_trained(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels != IGNORE_INDEX).sum())

    def repeated(self, rows: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """A batch of so many rows like this one: its fields, each `[rows, length]`."""
        return {name: getattr(self, name).to(device).expand(rows, -1) for name in ROW_FIELDS}


ROW_FIELDS = tuple(field.name for field in fields(Row))


def lay_out(
    parts: Sequence[Part],
    tokens: AddedTokens,
    shape: SegmentShape,
    condition: Condition,
    max_length: int | None = None,
) -> Row:
    """Lay out one document.

    Positions under `voco`: VoCo and text tokens advance the row's counter, a segment's other tokens take the
    places just before its VoCo tokens. `[V V C T T]` is numbered `-2 -1 0 1 2`; a second segment after it starts
    from the counter, `[V V C V V C T]` is `-2 -1 0 -1 0 1 2`. Under `full`, text sees vision, so every token is
    numbered contiguously from 0.

    A row's first token is never trained, since nothing stands before it to predict it.

    Args:
        parts: Text and segments in row order.
        tokens, shape: Of every segment whose mark has no number of its own.
        condition: Decides the positions.
        max_length: Tokens a row may have. Text is cut from the end.

    Raises:
        DataError: Cutting would lose a VoCo token, or would leave none of the row's trained tokens.
    """
    ids, labels, segment, voco, position = [], [], [], [], []
    counter, num_segments, segments_end = 0, 0, 0
    for part in parts:
        if isinstance(part, TextSpan):
            ids += part.ids
            labels += [i if trained else IGNORE_INDEX for i, trained in zip(part.ids, part.trained, strict=True)]
            segment += [0] * len(part.ids)
            voco += [False] * len(part.ids)
            position += range(counter, counter + len(part.ids))
            counter += len(part.ids)
            continue
        num_segments += 1
        num_voco = shape.num_voco if part.num_voco is None else part.num_voco
        segment_ids = replace(shape, num_voco=num_voco).ids(tokens)
        ids += segment_ids
        labels += [IGNORE_INDEX] * len(segment_ids)
        segment += [num_segments] * len(segment_ids)
        voco += [False] * shape.num_compressed + [True] * num_voco
        position += range(counter - shape.num_compressed, counter + num_voco)
        counter += num_voco
        segments_end = len(ids)
    if condition == "full":
        position = list(range(len(ids)))
    if labels:
        labels[0] = IGNORE_INDEX
    if max_length is not None and len(ids) > max_length:
        _check_cut(len(ids), max_length, segments_end, labels)
    return Row(
        torch.tensor(ids[:max_length], dtype=torch.long),
        torch.tensor(labels[:max_length], dtype=torch.long),
        torch.tensor(segment[:max_length], dtype=torch.long),
        torch.tensor(voco[:max_length], dtype=torch.bool),
        torch.tensor(position[:max_length], dtype=torch.long),
        torch.zeros(len(ids[:max_length]), dtype=torch.long),
    )


def _check_cut(length: int, max_length: int, segments_end: int, labels: list[int]) -> None:
    if segments_end > max_length:
        raise DataError(
            f"the row has {length} tokens and its last image ends at {segments_end}, so cutting it to max_length"
            f" {max_length} would lose VoCo tokens: raise data.max_length or drop the record",
            ProblemKind.IMAGE_CUT,
        )
    was_trained = any(label != IGNORE_INDEX for label in labels)
    if was_trained and all(label == IGNORE_INDEX for label in labels[:max_length]):
        raise DataError(
            f"the row has {length} tokens and none of its trained tokens is left after cutting it to max_length"
            f" {max_length}: raise data.max_length or drop the record",
            ProblemKind.NO_ANSWER_LEFT,
        )


def next_tokens(labels: Tensor) -> Tensor:
    """What each token is to predict, the label of the one after it; -100 at the end. int64 `[batch, length]`."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def pack_rows(rows: Sequence[Row]) -> Row:
    """Put several rows one after another as documents of one row.

    Positions stay each document's own. The first label of a document is never trained: its predecessor belongs
    to another document.
    """
    joined = {name: torch.cat([getattr(row, name) for row in rows]) for name in ROW_FIELDS}
    joined["document"] = torch.cat([torch.full((len(row),), index) for index, row in enumerate(rows)])
    starts = torch.tensor([0, *[len(row) for row in rows[:-1]]]).cumsum(0)
    joined["labels"][starts] = IGNORE_INDEX
    return Row(**joined)


def pad_rows(rows: Sequence[Row], tokens: TokenIds, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
    """Stack rows of unequal length.

    Returns:
        The fields of `Row`, each `[batch, longest]`. Padding has document -1, label -100, segment 0, position 0.
    """
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [getattr(row, name) for row in rows], batch_first=True, padding_value=value, padding_side=side
        )
        for name, value in _padding(tokens.pad).items()
    }


@dataclass(frozen=True)
class HostRows:
    """Padded rows that stay on the host whatever moves the rest of a batch to its device.

    It is no mapping or tuple and has no `.to`, so that accelerate, DDP and DeepSpeed leave it alone.

    Attributes:
        fields: Those of `Row`, each `[rows, longest]`.
        media: int64 `[media, most]`: the images of each distinct medium (an image, several, the frames of a clip) as
            numbers into the batch's images, -1 padded. None: each segment shows an image of its own, in row order.
        medium: int64 `[rows]`: which of them a row looks at; -1: none.
    """

    fields: dict[str, Tensor]
    media: Tensor | None = None
    medium: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> "HostRows":
        """Those of a batch of either kind that a `Collator` makes."""
        if "rows" in batch:
            return batch["rows"]
        return cls({name: batch[name] for name in ROW_FIELDS}, batch.get("media"), batch.get("medium"))

    def read_through(self, num_voco: Tensor, pad_token_id: int) -> "HostRows":
        """The rows once for each reading, one reading after the other, all looking at the same images.

        Args:
            num_voco: int64 `[readings, rows]`: VoCo tokens that each keeps of its segments (`truncate_voco`).
            pad_token_id: Id of padding.
        """
        times = len(num_voco)
        fields = {name: values.repeat(times, 1) for name, values in self.fields.items()}
        medium = None if self.medium is None else self.medium.repeat(times)
        return HostRows(truncate_voco(fields, num_voco.flatten(), pad_token_id), self.media, medium)


def _padding(pad_token_id: int) -> dict[str, int]:
    """What each field of a row holds at a place of padding."""
    return {
        "input_ids": pad_token_id,
        "labels": IGNORE_INDEX,
        "segment": 0,
        "voco": False,
        "position": 0,
        "document": PADDING_DOCUMENT,
    }


def voco_index(voco: Tensor, segment: Tensor | None = None) -> Tensor:
    """Which of its segment's VoCo tokens each one is, counted from 0; -1 for all other tokens.

    A segment's VoCo tokens are one run: between those of two segments stand vision tokens, or, where an external
    compressor makes them, `segment` (int64) tells them apart. `voco` is bool `[batch, length]`, the result int64 of the
    same shape.
    """
    starts = voco & ~torch.nn.functional.pad(voco[:, :-1], (1, 0))
    if segment is not None:
        starts |= voco & (segment.diff(dim=1, prepend=segment[:, :1]) != 0)
    count = voco.long().cumsum(dim=1) - 1
    before_run = count.masked_fill(~starts, 0).cummax(dim=1).values
    return torch.where(voco, count - before_run, -1)


def truncate_voco(batch: dict[str, Tensor], num_voco: Tensor | int, pad_token_id: int) -> dict[str, Tensor]:
    """Keep the first `num_voco` VoCo tokens of every segment, as if the rows had been laid out with that many.

    Tokens behind a segment move up, so every later token's position falls by the VoCo tokens lost before it. A row
    that `max_length` cut is not cut anew: it lost its text for the number it was laid out with.

    Args:
        batch: Fields of `Row`, each `[batch, length]`, padded on the right; `labels` may be missing. Other entries
            (`pixel_values`) are passed on.
        num_voco: For all rows, or one number a row, int64 `[batch]`; at least 1.
        pad_token_id: Id of the padding that fills rows which lost more than others.
    """
    lost = voco_index(batch["voco"], batch["segment"]) >= torch.as_tensor(
        num_voco, device=batch["voco"].device
    ).reshape(-1, 1)
    kept = (batch["document"] >= 0) & ~lost
    length = int(kept.sum(dim=1).max())
    places = torch.argsort(kept.logical_not().long(), dim=1, stable=True)[:, :length]
    is_padding = ~kept.gather(1, places)
    lost_before = lost.long().cumsum(dim=1) - lost.long()
    starts_document = batch["document"].diff(dim=1, prepend=batch["document"][:, :1] - 1) != 0
    lost_in_earlier_documents = lost_before.masked_fill(~starts_document, 0).cummax(dim=1).values
    moved = batch | {"position": batch["position"] - (lost_before - lost_in_earlier_documents)}
    fields_kept = {
        name: moved[name].gather(1, places).masked_fill(is_padding, fill)
        for name, fill in _padding(pad_token_id).items()
        if name in batch
    }
    return batch | fields_kept
