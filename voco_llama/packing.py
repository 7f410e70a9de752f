"""A batch of rows taken apart for a pass in two steps: every distinct segment once, and all text, without padding.

Rows say what text reads; they hold an image's tokens as often as conversations are about it, and are padded. `Packing`
lists what has to be computed, in one run of tokens, and where each thing is read:

    packed tokens   [ segment 0 | segment 1 | ... | text of row 0 | text of row 1 | ... ]
    row 0 reads     [ read of segment 0, text ]         row 1 reads     [ text, read of segment 0, read of 1, text ]

Under `voco` a segment is one image, laid out alone, and its VoCo tokens are what is read. Under `full` it is all that
stands before a document's text, and all of it is read; text before an image would change what the image's tokens see,
so rows that have any cannot be taken apart. A packed document reads as a row of its own.

Everything here is arithmetic on small integer tensors on the host. Nothing waits for a device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from voco_llama.choices import Condition
from voco_llama.errors import SettingsError
from voco_llama.layout import PADDING_DOCUMENT, SegmentMark, SegmentShape, lay_out, voco_index
from voco_llama.tokens import AddedTokens

TEXT_BEFORE_IMAGE = (
    "a row has text before an image, whose tokens see it under condition 'full': the pass in two steps cannot compute"
    " that, set two_steps=false"
)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """See the module. Of all tensors (int64), numbers of tokens count packed tokens unless said otherwise.

    Attributes:
        input_ids, position_ids: `[tokens]`, segments first, each of `segment_length` tokens, padded on the right.
        num_segments, segment_length: Of the packed segments.
        image_places: `[image tokens]`: the packed tokens that image features fill.
        image_order: `[images shown]`: which image of the batch fills the next of these places.
        sources: `[reads]`: the packed token that each place of a row which is no text reads.
        offsets: `[reads]`: by how many positions its key is moved; None: no key moves.
        num_rows, longest: Of the rows in which text reads, padded on the right.
        text_places, read_places: `[text tokens]`, `[reads]`: the place in `rows x longest` of each.
        outputs: `[wanted]`: packed tokens whose last hidden states are wanted, in row-major order of the rows.
        voco: `[tokens]`: which of its segment's VoCo tokens each one is; -1 for all others.
        voco_places: `[N]`: the places of its VoCo tokens in a segment, where all are alike.
        segment: `[segments, segment_length]`, or `[1, segment_length]` where all are alike: which of the images of a
            packed segment each token belongs to, from 1 on; 0 for its padding.
        are_images: Each packed segment is one image, and all are laid out alike.
        last: What the last layer computes, if not all of it.
        kept: `[tokens of the last layer]`: the tokens that go on to it.
    """

    input_ids: Tensor
    position_ids: Tensor
    num_segments: int
    segment_length: int
    image_places: Tensor
    image_order: Tensor
    sources: Tensor
    offsets: Tensor | None
    num_rows: int
    longest: int
    text_places: Tensor
    read_places: Tensor
    outputs: Tensor
    voco: Tensor
    voco_places: Tensor
    segment: Tensor
    are_images: bool
    last: "Packing | None" = None
    kept: Tensor | None = None

    @property
    def num_segment_tokens(self) -> int:
        """Packed tokens before the text."""
        return self.num_segments * self.segment_length

    def in_rows(self, text: Tensor, read: Tensor | None = None) -> Tensor:
        """Text, `[text tokens, ...]`, and what it reads, `[reads, ...]`, as `[rows, longest, ...]`; 0 elsewhere."""
        rows = text.new_zeros(self.num_rows * self.longest, *text.shape[1:]).index_copy(0, self.text_places, text)
        if read is not None:
            rows = rows.index_copy(0, self.read_places, read)
        return rows.unflatten(0, (self.num_rows, self.longest))

    def to(self, device: torch.device) -> "Packing":
        """On another device; the host does not wait for the copies."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                pinned = value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value
                value = pinned.to(device, non_blocking=True)
            moved[field.name] = value.to(device) if isinstance(value, Packing) else value
        return Packing(**moved)


class _Segments(NamedTuple):
    """Packed segments, `[segments, length]`, and for each token of the rows where it stands in them."""

    input_ids: Tensor
    position_ids: Tensor
    voco: Tensor
    segment: Tensor
    image_order: Tensor
    source: Tensor
    """`[rows, length]`: the packed token that each token of a row's segments is; -1 for text."""


def images_of_rows(rows: Mapping[str, Tensor], media: Tensor | None = None, medium: Tensor | None = None) -> Tensor:
    """Which image of a batch each token's segment shows, int64 `[rows, length]`; -1 for text.

    Args:
        rows: Fields of `Row`, each `[rows, length]`.
        media: `[media, most]`: the images of each distinct medium, -1 padded. None: each segment has its own image, in
            row order.
        medium: `[rows]`: which of the media a row looks at; -1: none.

    Raises:
        ValueError: A row has segments that its medium has no image for, or several documents (segments begin anew).
    """
    if media is None:
        return segment_numbers(rows)
    segment = rows["segment"]
    images = media[medium.clamp(min=0)] if len(media) else media.new_full((len(segment), 1), -1)
    images = torch.nn.functional.pad(images.masked_fill(medium[:, None] < 0, -1), (1, 0), value=-1)
    shown = images.gather(1, segment.clamp(max=images.shape[1] - 1))
    unknown = (shown < 0) | (segment >= images.shape[1]) | (rows["document"] > 0)
    if bool((unknown & (segment > 0)).any()):
        raise ValueError("a row has segments that its medium has no image for: media and medium are of other rows")
    return shown


def images_in_order(rows: Mapping[str, Tensor], media: Tensor, medium: Tensor) -> Tensor:
    """The image of each segment of the rows, in row order, int64 `[segments]`; arguments as of `images_of_rows`."""
    numbers = segment_numbers(rows)
    starts = (numbers >= 0) & (numbers.diff(dim=1, prepend=torch.full_like(numbers[:, :1], -1)) != 0)
    return images_of_rows(rows, media, medium)[starts]


class ShownSegments(NamedTuple):
    """The segments that rows show, in row order, each int64 `[segments]`.

    Attributes:
        image: Of the batch (`images_of_rows`).
        num_voco: VoCo tokens of it that are there.
        row: That shows it.
    """

    image: Tensor
    num_voco: Tensor
    row: Tensor


def shown_segments(rows: Mapping[str, Tensor], images: Tensor) -> ShownSegments:
    """See `ShownSegments`; arguments as of `pack`."""
    numbers = segment_numbers(rows)
    starts = (numbers >= 0) & (numbers.diff(dim=1, prepend=torch.full_like(numbers[:, :1], -1)) != 0)
    num_voco = torch.bincount(numbers[rows["voco"] & (numbers >= 0)], minlength=int(starts.sum()))
    return ShownSegments(images[starts], num_voco, starts.nonzero()[:, 0])


def cannot_pack(rows: Mapping[str, Tensor], condition: Condition) -> str | None:
    """Why these rows cannot be computed in two steps under a condition; None: they can."""
    if condition == "voco":
        return None
    text, segment = _text_and_segments(rows)
    before = text.cumsum(dim=1) - text.long()
    starts = _documents(rows).diff(dim=1, prepend=_documents(rows)[:, :1] - 1) != 0
    in_document = before - before.masked_fill(~starts, 0).cummax(dim=1).values
    return TEXT_BEFORE_IMAGE if bool((segment & (in_document > 0)).any()) else None


def pack(
    rows: Mapping[str, Tensor],
    condition: Condition,
    shape: SegmentShape,
    tokens: AddedTokens,
    images: Tensor,
    wanted: Tensor,
    multiple: int = 1,
    segments_too: bool = False,
) -> Packing:
    """Take rows apart.

    Args:
        rows: Fields of `Row`, each `[rows, length]`, on the host, padded on either side.
        condition: Decides what is read of a segment.
        shape: Of a segment, as the model was trained with it; rows may have fewer of its VoCo tokens.
        tokens: The two added ones.
        images: From `images_of_rows`.
        wanted: bool `[rows, length]`: the tokens whose last hidden states are wanted.
        multiple: Rows of attention are as long as the longest, and then up to a multiple of this, so that fewer lengths
            occur: cuDNN makes a plan for each.
        segments_too: The last hidden states of all segments' tokens are wanted besides, after those of the rows.

    Raises:
        SettingsError: The rows cannot be taken apart under this condition.
    """
    if reason := cannot_pack(rows, condition):
        raise SettingsError(reason)
    text, in_segment = _text_and_segments(rows)
    if bool((wanted & ~text & ~rows["voco"]).any()) and condition == "voco":
        raise ValueError("what comes after a vision token is wanted: under 'voco' no text is predicted from one")
    segments = _alone(rows, shape, tokens, images) if condition == "voco" else _leading(rows, shape, tokens, images)
    read = in_segment & rows["voco"] if condition == "voco" else in_segment
    num_segment_tokens = segments.input_ids.numel()

    kept, is_text = text | read, text[text | read]
    packed_text = num_segment_tokens + text.flatten().cumsum(0).view_as(text) - 1
    packed = torch.where(text, packed_text, segments.source)
    own_position = segments.position_ids.flatten()[segments.source.clamp(min=0)] if num_segment_tokens else 0
    offsets = (rows["position"] - own_position)[read]

    documents = _documents(rows)[kept]
    changes = documents.diff(prepend=documents[:1] - 1) != 0
    row, places = changes.cumsum(0) - 1, torch.arange(len(documents))
    place = places - places[changes][row] if len(documents) else places
    num_rows, longest = (int(row[-1]) + 1, int(place.max()) + 1) if len(documents) else (0, 0)
    longest = -(-longest // multiple) * multiple
    places = row * longest + place
    outputs = packed[wanted]
    if segments_too:
        outputs = torch.cat([outputs, torch.arange(num_segment_tokens)])
    packing = Packing(
        input_ids=torch.cat([segments.input_ids.flatten(), rows["input_ids"][text]]),
        position_ids=torch.cat([segments.position_ids.flatten(), rows["position"][text]]),
        num_segments=segments.input_ids.shape[0],
        segment_length=segments.input_ids.shape[1],
        image_places=_is_image(segments.input_ids.flatten(), shape, tokens).nonzero()[:, 0],
        image_order=segments.image_order,
        sources=segments.source[read],
        offsets=offsets if bool(offsets.any()) else None,
        num_rows=num_rows,
        longest=longest,
        text_places=places[is_text],
        read_places=places[~is_text],
        outputs=outputs,
        voco=torch.cat([segments.voco.flatten(), torch.full((int(is_text.sum()),), -1)]),
        voco_places=(segments.voco[:1].flatten() >= 0).nonzero()[:, 0],
        segment=segments.segment,
        are_images=condition == "voco",
    )
    return _with_short_last_layer(packing) if condition == "voco" else packing


def segments_alone(shape: SegmentShape, tokens: AddedTokens, number: int) -> Packing:
    """So many segments and no text, to be compressed."""
    row = lay_out([SegmentMark()], tokens, shape, "voco").repeated(number, torch.device("cpu"))
    nothing = torch.zeros_like(row["voco"])
    return pack(row, "voco", shape, tokens, images_of_rows(row), nothing)


def _with_short_last_layer(packing: Packing) -> Packing:
    """In the last layer only keys and values of VoCo tokens are needed of a segment, unless its outputs are wanted."""
    num = packing.num_segment_tokens
    if bool((packing.outputs < num).any()) or num == 0:
        return packing
    kept = ((packing.voco >= 0) | (torch.arange(len(packing.voco)) >= num)).nonzero()[:, 0]
    place = torch.full((len(packing.voco),), -1).index_put((kept,), torch.arange(len(kept)))
    last = replace(
        packing,
        segment_length=int((kept < num).sum()) // packing.num_segments,
        input_ids=packing.input_ids[kept],
        position_ids=packing.position_ids[kept],
        voco=packing.voco[kept],
        voco_places=torch.arange(len(packing.voco_places)),
        segment=packing.segment[:, packing.voco[: packing.segment_length] >= 0],
        sources=place[packing.sources],
        outputs=place[packing.outputs],
    )
    return replace(packing, last=last, kept=kept)


def _text_and_segments(rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    real = rows["document"] > PADDING_DOCUMENT
    return real & (rows["segment"] == 0), real & (rows["segment"] > 0)


def _documents(rows: Mapping[str, Tensor]) -> Tensor:
    """A number of its own for each document of a batch, `[rows, length]`."""
    document = rows["document"]
    return document + torch.arange(len(document))[:, None] * (int(document.max()) + 2 if document.numel() else 1)


def segment_numbers(rows: Mapping[str, Tensor]) -> Tensor:
    """A number of its own, in row order, for each segment of a batch, `[rows, length]`; -1 for text."""
    _, in_segment = _text_and_segments(rows)
    mark = torch.where(in_segment, _documents(rows) * (int(rows["segment"].max()) + 1) + rows["segment"], -1)
    starts = in_segment & (mark.diff(dim=1, prepend=torch.full_like(mark[:, :1], -1)) != 0)
    return torch.where(in_segment, starts.flatten().cumsum(0).view_as(starts) - 1, -1)


def _alone(rows: Mapping[str, Tensor], shape: SegmentShape, tokens: AddedTokens, images: Tensor) -> _Segments:
    """Each image that a row shows as a segment of its own."""
    shown = images[images >= 0].unique()
    row = lay_out([SegmentMark()], tokens, shape, "voco")
    length = len(row)
    number = torch.full((int(shown.max()) + 1 if len(shown) else 1,), -1).index_put((shown,), torch.arange(len(shown)))
    voco = voco_index(rows["voco"], segment_numbers(rows))
    inside = torch.where(rows["voco"], shape.num_compressed + voco, -1)
    source = torch.where(inside >= 0, number[images.clamp(min=0)] * length + inside, -1)
    repeated = (len(shown), length)
    return _Segments(
        row.input_ids.expand(repeated),
        row.position.expand(repeated),
        voco_index(row.voco[None]).expand(repeated),
        row.segment[None],
        shown,
        source,
    )


def _leading(rows: Mapping[str, Tensor], shape: SegmentShape, tokens: AddedTokens, images: Tensor) -> _Segments:
    """All segments of a document together, each different run of them once."""
    _, in_segment = _text_and_segments(rows)
    documents, number = _documents(rows)[in_segment].unique_consecutive(return_inverse=True)
    counts = torch.bincount(number)
    inside = torch.arange(len(number)) - (counts.cumsum(0) - counts)[number]
    length = int(counts.max()) if len(counts) else 1
    numbers = segment_numbers(rows)
    described = torch.full((len(documents), 5, length), -1)
    facts = (rows["input_ids"], rows["position"], voco_index(rows["voco"], numbers), images, rows["segment"])
    for place, values in enumerate(facts):
        described[number, place, inside] = values[in_segment]
    distinct, unit = described.unique(dim=0, return_inverse=True)
    source = torch.full_like(images, -1)
    source[in_segment] = unit[number] * length + inside
    ids, position, voco, shown, segment = distinct.unbind(1)
    shows = torch.where(_is_image(ids, shape, tokens), segment, -1)
    starts = (shows >= 0) & (shows.diff(dim=1, prepend=torch.full_like(shows[:, :1], -1)) != 0)
    return _Segments(ids.clamp(min=0), position, voco, segment.clamp(min=0), shown[starts], source)


def _is_image(ids: Tensor, shape: SegmentShape, tokens: AddedTokens) -> Tensor:
    """The tokens that image features fill: those of an external compressor are the VoCo tokens."""
    return ids == (tokens.image if shape.num_vision else tokens.voco)
