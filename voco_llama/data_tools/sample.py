"""One sample of a preview: its tokens by what they are, its pictures, and its mask, all from the row itself.

A token is vision, VoCo, prompt, trained answer or padding by the row's vectors and labels. Long runs of vision tokens
or of padding stand as one entry in the text, and are shortened in the mask's picture; everything else is shown whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from voco_llama.choices import Condition, SegmentAttention
from voco_llama.tokens import IGNORE_INDEX, TokenIds
from voco_llama.visibility import TokenFacts, dense_mask


@dataclass(frozen=True)
class Kind:
    """What a token is, how a legend calls it, and its color (red, green, blue)."""

    name: str
    label: str
    color: tuple[int, int, int]


VISION = Kind("vision", "vision token", (158, 202, 235))
VOCO = Kind("voco", "VoCo token", (247, 164, 58))
PROMPT = Kind("prompt", "prompt, not trained", (226, 226, 226))
ANSWER = Kind("answer", "answer, trained", (150, 214, 145))
PADDING = Kind("padding", "padding", (205, 190, 215))
KINDS = (VISION, VOCO, PROMPT, ANSWER, PADDING)

AS_RUNS = (VISION, PADDING)
"""Kinds whose tokens are all alike: a run of them is one entry."""

RUN_DRAWN = 24
"""Most tokens of such a run in the mask's picture: its first and its last ones."""

AXIS_SHARE = 24
"""The colored axes of the mask's picture are this part of its side."""

VISIBLE, HIDDEN = (50, 50, 50), (255, 255, 255)
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
PART = "·"


@dataclass(frozen=True)
class Entry:
    """A token, or a run of tokens that are alike.

    Attributes:
        kind: What it is.
        count: Its tokens.
        text: What it says.
        facts: Its place, ids and vectors.
    """

    kind: Kind
    count: int
    text: str
    facts: str


@dataclass(frozen=True)
class Sample:
    """See the module.

    Attributes:
        title: Where the record stands.
        summary: Numbers, one line each.
        entries: All tokens of the row, in order.
        pictures: What the vision tower sees.
        mask: One pixel a token drawn, colored axes above and to the left.
        mask_note: What the picture leaves out.
    """

    title: str
    summary: tuple[str, ...]
    entries: tuple[Entry, ...]
    pictures: tuple[Image.Image, ...]
    mask: Image.Image
    mask_note: str


@dataclass(frozen=True)
class Failure:
    """A record that cannot be used, and the one line that says why."""

    title: str
    error: str


def kinds_of(row: dict[str, Tensor], tokens: TokenIds) -> Tensor:
    """What each token of a row is, as an index into `KINDS`.

    Text inside a segment (BOS and newline in the authors' order) is prompt.

    Args:
        row: Fields of `voco_llama.layout.Row`, each `[length]`.
        tokens: Ids of the special tokens.

    Returns:
        int64 `[length]`.
    """
    kinds = torch.full_like(row["segment"], KINDS.index(PROMPT))
    kinds[row["labels"] != IGNORE_INDEX] = KINDS.index(ANSWER)
    kinds[(row["segment"] > 0) & (row["input_ids"] == tokens.image)] = KINDS.index(VISION)
    kinds[row["voco"]] = KINDS.index(VOCO)
    kinds[row["document"] < 0] = KINDS.index(PADDING)
    return kinds


def runs_of(row: dict[str, Tensor], kinds: Tensor) -> list[tuple[Kind, list[int]]]:
    """Places of a row's tokens, those of `AS_RUNS` joined as long as their segment is the same."""
    keys = [
        (kind, segment, -1 if KINDS[kind] in AS_RUNS else place)
        for place, (kind, segment) in enumerate(zip(kinds.tolist(), row["segment"].tolist(), strict=True))
    ]
    runs = groupby(range(len(keys)), key=keys.__getitem__)
    return [(KINDS[kind], list(run)) for (kind, _, _), run in runs]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token of a text says.

    Each is decoded behind another one, so that its leading space stays. Tokens that are bytes of one character are
    decoded together: the first one says it, the others are `PART`.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = len(tokenizer.decode(anchor))

    def decode(stretches: Sequence[Sequence[int]]) -> list[str]:
        texts = tokenizer.batch_decode([[*anchor, *s] for s in stretches], clean_up_tokenization_spaces=False)
        return [text[before:] for text in texts]

    different = sorted(set(ids))
    alone = dict(zip(different, decode([[token] for token in different]), strict=True))
    texts: list[str] = []
    for is_part, group in groupby(ids, key=lambda token: UNPRINTABLE in alone[token]):
        stretch = list(group)
        texts += [*decode([stretch]), *[PART] * (len(stretch) - 1)] if is_part else [alone[token] for token in stretch]
    return texts


def entries_of(row: dict[str, Tensor], kinds: Tensor, tokenizer: PreTrainedTokenizerBase) -> Iterator[Entry]:
    """The row's tokens as entries, in order."""
    texts = token_texts(tokenizer, row["input_ids"].tolist())
    for kind, run in runs_of(row, kinds):
        first, last = run[0], run[-1]
        if kind in AS_RUNS:
            text = f"{'V' if kind is VISION else 'padding'} × {len(run)}"
        else:
            text = "C" if kind is VOCO else texts[first]
        yield Entry(kind, len(run), text, _facts(row, first, last))


def _facts(row: dict[str, Tensor], first: int, last: int) -> str:
    def span(a: int, b: int) -> str:
        return str(a) if a == b else f"{a} to {b}"

    position = span(int(row["position"][first]), int(row["position"][last]))
    return (
        f"token {span(first, last)}, id {int(row['input_ids'][first])}, segment {int(row['segment'][first])},"
        f" position {position}, document {int(row['document'][first])}"
    )


def drawn_tokens(row: dict[str, Tensor], kinds: Tensor) -> Tensor:
    """Places of the tokens in the mask's picture, int64: all, but of each long run only its first and last ones."""
    places: list[int] = []
    for _, run in runs_of(row, kinds):
        half = RUN_DRAWN // 2
        places += run if len(run) <= RUN_DRAWN else [*run[:half], *run[-half:]]
    return torch.tensor(places)


def mask_picture(
    row: dict[str, Tensor], kinds: Tensor, condition: Condition, segment_attention: SegmentAttention
) -> tuple[Image.Image, Tensor]:
    """The row's mask by `voco_llama.visibility`, query by row and key by column, dark = may attend.

    Returns:
        The picture, and the places of the tokens in it; the axes are `side - tokens` pixels wide.
    """
    places = drawn_tokens(row, kinds)
    facts = TokenFacts.of_batch({name: values[None] for name, values in row.items()})
    facts = facts.at(slice(None), places)
    mask = dense_mask(facts, facts, condition, segment_attention)[0].numpy()
    axis = max(1, len(places) // AXIS_SHARE)
    pixels = np.full((len(places) + axis, len(places) + axis, 3), HIDDEN, dtype=np.uint8)
    pixels[axis:, axis:][mask] = VISIBLE
    colors = np.array([KINDS[kind].color for kind in kinds[places].tolist()], dtype=np.uint8)
    pixels[:axis, axis:] = colors[None]
    pixels[axis:, :axis] = colors[:, None]
    return Image.fromarray(pixels), places


def mask_note(num_drawn: int, length: int) -> str:
    """How much of a row a mask's picture shows."""
    if num_drawn == length:
        return f"mask of all {length} tokens"
    return f"mask of {num_drawn} of {length} tokens: of vision or padding, the first and last {RUN_DRAWN // 2} of a run"


def summary_of(kinds: Tensor, num_segments: int, num_cut: int, max_length: int) -> tuple[str, ...]:
    """Length, trained tokens and truncation of a row.

    Args:
        kinds: From `kinds_of`.
        num_segments: Images or frames.
        num_cut: Tokens that were cut from its end.
        max_length: Where.
    """
    counts = {kind: int((kinds == index).sum()) for index, kind in enumerate(KINDS)}
    length = len(kinds) - counts[PADDING]
    cut = f"{num_cut} tokens cut at data.max_length={max_length}" if num_cut else "nothing cut"
    return (
        f"{length} tokens, {counts[ANSWER]} of them trained; {cut}",
        f"images or frames: {num_segments}; {counts[VISION]} vision and {counts[VOCO]} VoCo tokens;"
        f" {counts[PROMPT]} of prompt; {counts[PADDING]} of padding to the longest sample here",
    )
