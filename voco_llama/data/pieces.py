"""The pieces of a prompt: text, special tokens, segments; and how they become tokens, each trained or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerBase

from voco_llama.layout import Part, SegmentMark, TextSpan
from voco_llama.tokens import TokenIds


@dataclass(frozen=True)
class Text:
    """Text to be tokenized; `trained` text is an answer."""

    text: str
    trained: bool = False


@dataclass(frozen=True)
class Special:
    """One special token, named by its role, never by its spelling."""

    role: Literal["bos", "eos"]
    trained: bool = False


@dataclass(frozen=True)
class Spelled:
    """One special token, as a chat template spells it within its text."""

    text: str
    trained: bool = False


@dataclass(frozen=True)
class Segment:
    """A compressed segment stands here."""


Piece = Text | Special | Spelled | Segment


@dataclass(frozen=True)
class PieceTokenizer:
    """Makes tokens of pieces.

    Neighboring texts are tokenized as one, so that a border does not change the tokens; what a chat template wrote,
    text and `Spelled` tokens, is too, as transformers does it. Special tokens spelled out in a `Text` are text, never
    the tokens themselves.

    Attributes:
        tokenizer: A fast one.
        tokens: Its ids.
    """

    tokenizer: PreTrainedTokenizerBase
    tokens: TokenIds

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """All of them, by their spelling."""
        added = self.tokenizer.added_tokens_decoder
        return {token.content: index for index, token in added.items() if token.special}

    def __call__(self, pieces: Sequence[Piece]) -> list[Part]:
        """The parts of a row."""
        groups = [(kind, list(group)) for kind, group in groupby(pieces, key=_kind)]
        plain = [group for kind, group in groups if kind is Text and not any(isinstance(p, Spelled) for p in group)]
        texts = iter(self._texts(plain))
        parts: list[Part] = []
        for kind, group in groups:
            if kind is Segment:
                parts += [SegmentMark()] * len(group)
            elif kind is Special:
                ids = [(getattr(self.tokens, special.role), special.trained) for special in group]
                parts += [TextSpan((token,), (trained,)) for token, trained in ids if token is not None]
            else:
                parts += self._template(group) if any(isinstance(p, Spelled) for p in group) else [next(texts)]
        return parts

    def _template(self, pieces: Sequence[Text | Spelled]) -> list[TextSpan]:
        """What a chat template wrote, as one text."""
        text = "".join(piece.text for piece in pieces)
        ((ids, offsets),) = self._encode([text], special_is_text=False)
        trained = _trained(pieces, offsets)
        # A text may have special tokens that it does not spell out: those of what is not in the vocabulary.
        found = [
            n for n, (start, end) in enumerate(offsets) if self.special_tokens.get(text[start:end].strip()) == ids[n]
        ]
        spelled = [piece for piece in pieces if isinstance(piece, Spelled)]
        if [ids[place] for place in found] != [self.special_tokens[piece.text] for piece in spelled]:
            return self._section_by_section(pieces)
        for place, piece in zip(found, spelled, strict=True):
            trained[place] = piece.trained  # one that takes in blanks beside it has them in its offsets
        return [TextSpan(tuple(ids), tuple(trained))]

    def _section_by_section(self, pieces: Sequence[Text | Spelled]) -> list[TextSpan]:
        """The same where a text spells out a special token: what stands between those of the template, each as text."""
        spans, last = [], None
        for kind, group in groupby(pieces, key=type):
            for piece in group if kind is Spelled else ():
                last = piece.text
                spans.append(TextSpan((self.special_tokens[last],), (piece.trained,)))
            if kind is Text:
                spans += self._texts([list(group)], head="" if last is None or self._begins_anew(last) else "\n")
        return spans

    def _begins_anew(self, token: str) -> bool:
        """Whether text after a special token is tokenized as at the beginning, where some tokenizers put a space."""
        (after, _), (alone, _) = self._encode([f"{token}a", "a"], special_is_text=False)
        return after[1:] == alone

    def _texts(self, stretches: Sequence[Sequence[Text]], head: str = "") -> list[TextSpan]:
        """One span a stretch, tokenized as it would be after `head`, where that does not become one token with it."""
        spans = []
        texts = [head + "".join(piece.text for piece in stretch) for stretch in stretches]
        before = self._encode([head], special_is_text=True)[0][0] if head else []
        for stretch, (ids, offsets) in zip(stretches, self._encode(texts, special_is_text=True), strict=True):
            if ids[: len(before)] != before:
                spans += self._texts([stretch])
                continue
            trained = _trained([Text(head), *stretch], offsets)
            spans.append(TextSpan(tuple(ids[len(before) :]), tuple(trained[len(before) :])))
        return spans

    def _encode(self, texts: Sequence[str], special_is_text: bool) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and offsets of each text."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=special_is_text,
            return_offsets_mapping=True,
            verbose=False,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


def _kind(piece: Piece) -> type[Piece]:
    return Text if isinstance(piece, Spelled) else type(piece)


def _trained(pieces: Sequence[Text | Spelled], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Of each token: it is trained if a character of it is."""
    characters = [piece.trained for piece in pieces for _ in piece.text]
    return [any(characters[start : max(end, start + 1)]) for start, end in offsets]
