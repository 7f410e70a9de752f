"""`VoCoProcessor`: tokenizer, image transform and prompt style, one object, saved beside the model.

It turns a record into a laid-out row with its pixels (training; `voco_llama.data.collate` makes a batch of them), and
questions with or without images into a left-padded batch (inference).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from voco_llama.choices import Condition
from voco_llama.data.chat_template import ChatTemplate
from voco_llama.data.conversations import Conversation, Prompt, conversations_of
from voco_llama.data.media.decoded import decode_clip, decode_images
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.pieces import Piece, PieceTokenizer
from voco_llama.data.processor_files import ProcessorFiles
from voco_llama.data.prompts import PromptStyle, render
from voco_llama.data.records import Record, Turn
from voco_llama.errors import DataError
from voco_llama.layout import ROW_FIELDS, Part, Row, SegmentMark, SegmentShape, TextSpan, lay_out, pad_rows
from voco_llama.tokens import TokenIds, segment_affixes, token_ids


@dataclass(frozen=True)
class VoCoProcessor(ProcessorFiles):
    """See the module.

    Attributes:
        tokenizer: With `<image>` and `<voco>` added (`voco_llama.tokens.add_special_tokens`).
        image_transform: PIL image to `[3, height, width]`.
        style: Template, order and system text of prompts.
        num_vision: Vision tokens of one image.
        num_voco: VoCo tokens of one segment.
        condition: Visibility the rows are laid out for (it decides their positions).
        max_length: Tokens of a training row; None: not limited.
        num_frames: Frames taken from a clip.
    """

    tokenizer: PreTrainedTokenizerBase
    image_transform: ImageTransform
    style: PromptStyle = field(default_factory=PromptStyle)
    num_vision: int = 576
    num_voco: int = 1
    condition: Condition = "voco"
    max_length: int | None = 2048
    num_frames: int = 8

    @cached_property
    def tokens(self) -> TokenIds:
        """Ids of the special tokens."""
        return token_ids(self.tokenizer)

    def segment_shape(self, num_voco: int | None = None) -> SegmentShape:
        """Shape of a segment under the prompt's order."""
        num_voco = self.num_voco if num_voco is None else num_voco
        return SegmentShape(self.num_vision, num_voco, *segment_affixes(self.tokenizer, self.style.order))

    # ---- training

    def row(self, record: Record) -> dict[str, Tensor]:
        """Lay out a record and load what it looks at.

        Returns:
            The fields of `voco_llama.layout.Row`, each `[length]`; `pixel_values` `[images, 3, height, width]` float32
            (0 images for text-only records); and `image_keys` `[images]` int64, equal for images that are the same.

        Raises:
            DataError: An image or the clip cannot be read, or the row does not fit `max_length`; it names the record.
        """
        try:
            if record.video is None:
                decoded = decode_images(record.images, self.image_transform)
            else:
                decoded = decode_clip(record.video, self.num_frames, self.image_transform)
            row = self.lay_out_record(record, self.max_length)
        except DataError as error:
            raise DataError(f"{record.source}: {error}", error.kind) from error
        return {name: getattr(row, name) for name in ROW_FIELDS} | decoded

    def pixels(self, images: Sequence[Image.Image] | Image.Image) -> Tensor:
        """`[images, 3, height, width]` float32, normalized; 0 images give an empty first dimension."""
        if isinstance(images, Image.Image):
            images = [images]
        if not images:
            return torch.empty(0, 3, self.image_transform.image_size, self.image_transform.image_size)
        return torch.stack([self.image_transform(image) for image in images])

    def lay_out_record(self, record: Record, max_length: int | None = None) -> Row:
        """The row that training has of a record, cut at `max_length` tokens, without loading what it looks at.

        Raises:
            DataError: As `voco_llama.layout.lay_out`, or the template needs a caption and there is none.
        """
        looks = record.images or record.video is not None
        segments_per_mark = None if not looks else 1 if record.video is None else self.num_frames
        parts = self.tokenize(render(record.turns, self.style, segments_per_mark, asks=False, chat=self._chat))
        if self.style.template != "chat" and not self._is_trained(parts):
            parts = [TextSpan(p.ids, (False,) * len(p.ids)) if isinstance(p, TextSpan) else p for p in parts]
        return lay_out(parts, self.tokens, self.segment_shape(), self.condition, max_length)

    def _is_trained(self, parts: Sequence[Part]) -> bool:
        """Whether LLaVA trains a row: it ends with what is trained, or has more than fits before it ends otherwise.

        LLaVA counts the tokens of all rounds with an answer, an image as one token, and trains nothing of a row that
        goes on after them ("tokenization mismatch"), unless they reach its longest row.
        """
        trained = [t for part in parts for t in (part.trained if isinstance(part, TextSpan) else (False,))]
        answered = max((place for place, is_trained in enumerate(trained, start=1) if is_trained), default=0)
        return answered == len(trained) or (self.max_length is not None and answered >= self.max_length)

    def lay_out(
        self,
        turns: Sequence[Turn],
        segments_per_mark: int = 1,
        shape: SegmentShape | None = None,
        condition: Condition | None = None,
        max_length: int | None = None,
        system: str | None = None,
        counts: Sequence[int] | None = None,
    ) -> Row:
        """Lay out a conversation without loading anything.

        Args:
            turns: What was said.
            segments_per_mark: More than one for the frames of a clip.
            shape: Of a segment; the processor's own by default.
            condition, max_length: As of `voco_llama.layout.lay_out`.
            system: Its own system text, in place of the style's.
            counts: VoCo tokens of each segment, where they differ from the shape's.
        """
        style = self.style if system is None else replace(self.style, system=system)
        parts = self.tokenize(render(turns, style, segments_per_mark, chat=self._chat))
        if counts is not None:
            parts = _numbered(parts, counts)
        return lay_out(parts, self.tokens, shape or self.segment_shape(), condition or self.condition, max_length)

    # ---- inference

    def __call__(
        self,
        text: Prompt | Sequence[Prompt],
        images: Sequence[Image.Image] | Image.Image | None = None,
        condition: Condition | None = None,
        num_voco: int | Sequence[int] | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Lay out questions, or conversations that end with one, as a left-padded batch for `VoCoLlama.generate`.

        With images, the texts' `<image>` marks stand for them in order (a text without any mark gets one in front
        if every text lacks it and there is one image for each). Without images, a mark reads one entry of the
        cache that `generate` is given, and texts without any mark read all of it. Where some texts have marks, those
        without any are on text alone: `Inference.answer` is for questions that all look at the same.

        Args:
            text: Questions, one a row, each a text or a list of messages (`voco_llama.data.conversations`).
            images: All images of the batch, in the order of the marks.
            condition: The processor's own by default.
            num_voco: VoCo tokens of every image, or a number for each mark, as the `counts` of a cache whose entries
                have unequal numbers; the processor's own by default.

        Returns:
            The fields of a batch of rows, `pixel_values` if images were given, and the `condition`.

        Raises:
            DataError: The number of marks is not the number of images, or of the numbers given, or a mark has no image
                under `full`, where there is no cache to read; or messages are no conversation.
        """
        conversations = conversations_of(text)
        images = [images] if isinstance(images, Image.Image) else images
        condition = condition or self.condition
        numbers = None if num_voco is None or isinstance(num_voco, int) else [int(number) for number in num_voco]
        shape = self.segment_shape(num_voco if numbers is None else None)
        if images is not None:
            conversations = _with_marks(conversations, len(images))
        elif condition == "full" and any(one.num_marks for one in conversations):
            raise DataError("a text has an <image> mark and there is no image: pass images for condition 'full'")
        else:
            shape = shape.cached
        if self.style.template == "plain":
            raise DataError("a model trained with prompt.template=plain writes captions: train it on questions before")
        counts: list[list[int] | None] = [None] * len(conversations)
        if numbers is not None:
            counts = _divided(numbers, [one.num_marks for one in conversations])
        rows = [
            self.lay_out(one.turns, shape=shape, condition=condition, system=one.system, counts=its_counts)
            for one, its_counts in zip(conversations, counts, strict=True)
        ]
        batch = pad_rows(rows, self.tokens, side="left")
        del batch["labels"]
        pixels = {} if images is None else {"pixel_values": self.pixels(images)}
        return batch | pixels | {"condition": condition}

    # ---- tokens

    def tokenize(self, pieces: Sequence[Piece]) -> list[Part]:
        """The parts of a row, of the pieces of a prompt."""
        return self._pieces(pieces)

    @cached_property
    def _pieces(self) -> PieceTokenizer:
        return PieceTokenizer(self.tokenizer, self.tokens)

    @cached_property
    def _chat(self) -> ChatTemplate | None:
        return ChatTemplate(self._pieces) if self.style.template == "chat" else None

    @property
    def special_tokens(self) -> dict[str, int]:
        """All of the tokenizer, by their spelling; spelled out in a text they are text."""
        return self._pieces.special_tokens

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that answers end with."""
        return (self.tokens.eos,) if self._chat is None else self._chat.ends

    def check_style(self) -> None:
        """Refuse a chat template before a row is written in it.

        Raises:
            SettingsError: As `ChatTemplate.check`.
        """
        if self._chat is not None:
            self._chat.check(self.style.system)


def _with_marks(conversations: list[Conversation], num_images: int) -> list[Conversation]:
    """The conversations with a mark for every image."""
    num_marks = sum(one.num_marks for one in conversations)
    if num_marks == 0 and num_images == len(conversations):
        return [one.looking_at([1]) for one in conversations]
    if num_marks != num_images:
        raise DataError(f"the texts have {num_marks} <image> marks and there are {num_images} images: make them equal")
    return conversations


def _divided(numbers: Sequence[int], num_marks: Sequence[int]) -> list[list[int]]:
    """The VoCo tokens of each mark of each text, of those of all marks; none of texts without marks."""
    if any(num_marks) and sum(num_marks) != len(numbers):
        raise DataError(
            f"the texts have {sum(num_marks)} <image> marks and there are {len(numbers)} numbers of VoCo tokens: give"
            " one for each mark"
        )
    rest = iter(numbers)
    return [list(islice(rest, count)) for count in num_marks]


def _numbered(parts: Sequence[Part], counts: Sequence[int]) -> list[Part]:
    """The parts of a row whose segments have these numbers of VoCo tokens.

    Raises:
        DataError: There are not as many, or one is below 1.
    """
    marks = sum(isinstance(part, SegmentMark) for part in parts)
    if marks != len(counts) or any(count < 1 for count in counts):
        raise DataError(
            f"numbers of VoCo tokens are {list(counts)} for {marks} images: give one of at least 1 for each"
        )
    rest = iter(counts)
    return [SegmentMark(next(rest)) if isinstance(part, SegmentMark) else part for part in parts]
