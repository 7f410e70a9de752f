r"""From a conversation to the pieces of a prompt: text, trained text, segments, and special tokens.

Templates:

    vicuna_v1   `<s>{system} USER: {question} ASSISTANT: {answer}</s>USER: ...` (LLaVA-1.5); of a turn without text its
                role is written and nothing after it, and after an empty question no answer is trained, as in LLaVA
    chat        the tokenizer's own chat template (`voco_llama.data.chat_template`)
    plain       `<s>{caption}\n`: the user's words are dropped (LLaVA's alignment stage)

Orders, which say where a segment stands:

    first       before everything, the paper's `(V, VoCo, T)`: `[V C]<s>...`
    authors     as their code has it: `[<s> V \n C]\n{system} USER: ...`, BOS and newline inside the segment, so
                text cannot see BOS
    llava       inline, at the start of its turn and followed by a newline and the stripped rest of the turn, if there
                is any: where LLaVA-1.5 moves it
    inline      where the record has its mark
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from voco_llama.choices import ORDERS, TEMPLATES, Order, Template, require_choice
from voco_llama.data.chat_template import ChatTemplate, Said
from voco_llama.data.pieces import Piece, Segment, Special, Text
from voco_llama.data.records import IMAGE_MARK, Turn
from voco_llama.errors import DataError, SettingsError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER, ASSISTANT = "USER:", "ASSISTANT:"


@dataclass(frozen=True)
class PromptStyle:
    """How conversations are written.

    Attributes:
        system: System text; None: Vicuna's, or what a chat template writes by itself.

    Raises:
        SettingsError: The template or the order is unknown, or they contradict each other.
    """

    template: Template = "vicuna_v1"
    order: Order = "first"
    system: str | None = None

    def __post_init__(self) -> None:
        require_choice("prompt.template", self.template, TEMPLATES)
        require_choice("prompt.order", self.order, ORDERS)
        if self.template != "chat":
            object.__setattr__(self, "system", VICUNA_SYSTEM if self.system is None else self.system)
        elif self.order == "authors":
            raise SettingsError(
                "prompt.order=authors puts the first token of a row inside its segment, and with prompt.template=chat"
                " the chat template writes it: set prompt.order to first, llava or inline"
            )


def render(
    turns: Sequence[Turn],
    style: PromptStyle,
    segments_per_mark: int | None = 1,
    asks: bool = True,
    chat: ChatTemplate | None = None,
) -> list[Piece]:
    """Write a conversation as pieces.

    Args:
        turns: User and assistant by turns, the user first.
        style: Template, order, system text.
        chat: What the template `chat` stands for.
        segments_per_mark: What a mark stands for: 1 segment for images, the number of frames for a clip; None: a mark
            is text like any other.
        asks: A conversation that ends with a user turn ends with the assistant's role, for an answer.

    Raises:
        DataError: The template `plain` needs a caption and there is none, or as `ChatTemplate.write`.
    """
    if chat is not None:
        return _in_chat_template(turns, style, segments_per_mark, asks, chat)
    num_marks = sum(turn.text.count(IMAGE_MARK) for turn in turns) if segments_per_mark else 0
    moved_first = style.order in ("first", "authors")
    bos_inside_segment = style.order == "authors" and num_marks > 0
    segments: list[Piece] = [Segment()] * (num_marks * (segments_per_mark or 0))
    head = list(segments) if moved_first else []
    if not bos_inside_segment:
        head.append(Special("bos"))
    if style.template == "plain":
        if not any(turn.role == "assistant" for turn in turns):
            raise DataError(
                "the template 'plain' writes captions, and the record has none: use prompt.template=vicuna_v1"
            )
        if not moved_first:
            head += segments
        captions = (turn.text for turn in turns if turn.role == "assistant")
        if segments_per_mark:
            captions = map(_without_marks, captions)
        return [*head, *(Text(f"{caption}\n", True) for caption in captions)]
    opening = ("\n" if bos_inside_segment else "") + (f"{style.system} " if style.system else "")
    pieces = [*head, Text(opening), *_conversation(turns, style.order, segments_per_mark, asks)]
    return [piece for piece in pieces if piece != Text("")]


def _conversation(turns: Sequence[Turn], order: Order, segments_per_mark: int | None, asks: bool) -> Iterator[Piece]:
    question, is_trained = "", True
    for turn in turns:
        if turn.role == "user":
            question = turn.text
            yield Text(f"{USER} " if question else USER)
            yield from _user_text(question, order, segments_per_mark)
            yield Text(" " if question else "")
            continue
        yield Text(ASSISTANT)
        if turn.text:
            is_trained = is_trained and bool(question)
            # The space is trained too: where it is a token of its own ("▁" before a digit), the model must say it.
            yield from (Text(f" {turn.text}", is_trained), Special("eos", is_trained))
    if asks and turns and turns[-1].role == "user":
        yield Text(ASSISTANT)


def _in_chat_template(
    turns: Sequence[Turn], style: PromptStyle, segments_per_mark: int | None, asks: bool, chat: ChatTemplate
) -> list[Piece]:
    looks = segments_per_mark is not None
    num_marks = sum(turn.text.count(IMAGE_MARK) for turn in turns if turn.role == "user") if looks else 0
    messages = [] if style.system is None else [{"role": "system", "content": style.system}]
    for turn in turns:
        is_placed = looks and turn.role == "user"
        messages.append(
            {"role": turn.role, "content": _place_marks(turn.text, style.order) if is_placed else turn.text}
        )
    pieces: list[Piece] = [Segment()] * (num_marks * (segments_per_mark or 0)) if style.order == "first" else []
    for piece in chat.write(messages, asks and bool(turns) and turns[-1].role == "user"):
        if not isinstance(piece, Said):
            pieces.append(piece)
        elif looks and messages[piece.message]["role"] == "user":
            pieces += _cut_at_marks(piece.text, segments_per_mark)
        else:
            pieces.append(Text(piece.text, piece.trained))
    return pieces


def _user_text(text: str, order: Order, segments_per_mark: int | None) -> list[Piece]:
    if segments_per_mark is None:
        return [Text(text)]
    return _cut_at_marks(_place_marks(text, order), segments_per_mark)


def _place_marks(text: str, order: Order) -> str:
    """The text with its marks where its order has images, none where they stand before everything."""
    if order in ("first", "authors"):
        return _without_marks(text)
    if order == "llava" and text.count(IMAGE_MARK) == 1:
        text = f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()
    return text


def _cut_at_marks(text: str, segments_per_mark: int) -> list[Piece]:
    pieces: list[Piece] = []
    for index, stretch in enumerate(text.split(IMAGE_MARK)):
        pieces += [Segment()] * segments_per_mark if index else []
        pieces.append(Text(stretch))
    return pieces


def with_marks(text: str, counts: Sequence[int]) -> str:
    """A question's text with a mark for every image that it looks at: the one rule for `<image>` in questions.

    The text's own marks say where each thing looked at stands, if they are as many. Otherwise they say nothing: they
    are taken out, and all that is looked at stands before the text, as LLaVA puts it.

    Args:
        text: What the user says.
        counts: Images of each thing looked at: 1 for an image, the number of frames for a clip, whose marks stand side
            by side. Empty: the question is on text alone.

    >>> with_marks("Is it <image> or <image>?", [1, 2])
    'Is it <image> or <image><image>?'
    >>> with_marks("<image>Why?", [])
    'Why?'
    """
    marks = [IMAGE_MARK * count for count in counts]
    head, *rest = text.split(IMAGE_MARK)
    if len(rest) == len(marks):
        return head + "".join(mark + piece for mark, piece in zip(marks, rest, strict=True))
    text = _without_marks(text)
    return f"{' '.join(marks)}\n{text}" if marks else text


def _without_marks(text: str) -> str:
    """The text without its marks and the line breaks around them; all other newlines stay."""
    if IMAGE_MARK not in text:
        return text
    return re.sub(rf"\s*{IMAGE_MARK}\s*", "\n", text).strip()
