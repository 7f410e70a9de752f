"""Conversations in the words of a tokenizer's own chat template, taken apart into what it writes and what was said.

The text of a row is what the template makes of the conversation, whole. Where each turn's words stand in it is known
from a second conversation of the same roles with a name in place of each turn's words: between the names stands what
the template writes itself. What the two do not have in common is refused.

Templates come with checkpoints and are not trusted: transformers runs them in Jinja's sandbox, without access to files,
modules or attributes of Python's own, and here within limits of time and memory, which that has not.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from voco_llama.data.bounded import bounded
from voco_llama.data.pieces import PieceTokenizer, Spelled, Text
from voco_llama.errors import DataError, ProblemKind, SettingsError, one_line, shown
from voco_llama.layout import TextSpan

ARGUMENTS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""What templates are given besides a conversation: no thinking (Qwen3), and one day for all rows (Llama 3.1's own)."""

SECONDS, MEMORY = 10.0, 2**30
"""Of the processor, and in bytes, that a template may take for a conversation."""

_MEND = "mend it, or take it out"
_CHOOSE = "set prompt.chat_template to a file with another, or prompt.template=vicuna_v1"


@dataclass(frozen=True)
class Said:
    """A message's words as they stand in a row.

    Attributes:
        message: Its number in the conversation.
    """

    text: str
    message: int
    trained: bool = False


Written = Text | Spelled | Said

Message = dict[str, str]
"""As transformers has it: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template.

    What is trained of a row: each answer that is not empty, blanks around it that the template writes after the prompt
    for an answer, and the special token that ends the turn; nothing after it.

    Attributes:
        pieces: Of the tokenizer.
    """

    pieces: PieceTokenizer
    _skeletons: dict[tuple[Any, ...], tuple[list[str], list[int]]] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Whose template it is."""
        return self.pieces.tokenizer

    def write(self, messages: Sequence[Message], asks: bool) -> list[Written]:
        """Write a conversation; `asks`: and the beginning of an answer after it.

        Raises:
            DataError: The template refuses the conversation, or writes a message otherwise than as it is or trimmed.
        """
        roles = tuple(message["role"] for message in messages)
        literals, order = self._skeleton(roles, asks)
        said = _find(self.render(messages, asks), literals, [messages[number]["content"] for number in order])
        written: list[Written] = []
        ends = False
        for place, literal in enumerate(literals):
            number = order[place] if place < len(order) else None
            answers = number is not None and roles[number] == "assistant" and bool(said[place])
            opening = self._opening(roles[:number], literal, is_last=number == len(roles) - 1) if answers else ""
            written += self._literal(literal[: len(literal) - len(opening)], ends)
            if number is not None:
                written += [Text(opening, answers), Said(said[place], number, answers)]
            ends = answers
        return [piece for piece in written if piece.text]

    def render(self, messages: Sequence[Message], asks: bool, **arguments: Any) -> Any:
        """What transformers makes of a conversation; its text, where `arguments` do not say otherwise."""
        arguments = {"tokenize": False, "add_generation_prompt": asks} | ARGUMENTS | arguments
        try:
            with bounded(SECONDS, MEMORY):
                return self.tokenizer.apply_chat_template(list(messages), **arguments)
        except Exception as error:  # its own complaint, or whatever it stumbles over, of any type
            raise DataError(
                f"the chat template refuses the conversation ({one_line(error)}): {_MEND}",
                ProblemKind.CHAT_TEMPLATE,
            ) from error

    def _skeleton(self, roles: tuple[str, ...], asks: bool) -> tuple[list[str], list[int]]:
        """What the template writes before, between and after messages, and their numbers in the order it has them."""
        if (roles, asks) not in self._skeletons:
            names = [f"VoCo-message-{number}." for number in range(len(roles))]
            rendered = self.render(_messages(roles, names), asks)
            for role, name in zip(roles, names, strict=True):
                if (times := rendered.count(name)) != 1:
                    raise DataError(
                        f"the chat template writes a message of the {role} {times} times: {_CHOOSE}",
                        ProblemKind.CHAT_TEMPLATE,
                    )
            order = sorted(range(len(roles)), key=lambda number: rendered.index(names[number]))
            ends = [(0, 0), *((rendered.index(names[n]), rendered.index(names[n]) + len(names[n])) for n in order)]
            literals = [rendered[end:start] for (_, end), (start, _) in pairwise([*ends, (len(rendered), 0)])]
            self._skeletons[roles, asks] = literals, order
        return self._skeletons[roles, asks]

    def _opening(self, before: tuple[str, ...], literal: str, is_last: bool) -> str:
        """The blanks at the end of what stands before an answer that are the model's to say: not in its prompt.

        A template may write the prompt for an answer otherwise than what stands before answers of earlier turns
        (Qwen3, whose prompt holds an empty thought); before the last one it has to be its beginning.
        """
        prompt = self._skeleton(before, True)[0][-1]
        opening = literal[len(prompt) :] if literal.startswith(prompt) else ""
        if opening.strip() or not (literal.startswith(prompt) or (prompt.startswith(literal) and not is_last)):
            raise DataError(
                f"the chat template's prompt for an answer ({prompt!r}) is not how it begins one ({literal!r}):"
                f" {_CHOOSE}",
                ProblemKind.CHAT_TEMPLATE,
            )
        return opening

    def _literal(self, text: str, ends: bool) -> Iterator[Written]:
        """What the template writes itself, taken apart at special tokens; the first of them `ends` an answer."""
        for stretch in self._special_token.split(text):
            is_special = stretch in self.pieces.special_tokens
            if ends and not is_special and stretch.strip():
                break
            yield Spelled(stretch, ends) if is_special else Text(stretch, ends)
            ends = ends and not is_special
        if ends:
            raise DataError(
                f"the chat template ends an answer by {text!r}, not by a special token of its own: {_CHOOSE}",
                ProblemKind.CHAT_TEMPLATE,
            )

    def check(self, system: str | None) -> None:
        """Try the template on conversations.

        Raises:
            SettingsError: There is none, it cannot be taken apart, or its rows would not be those of transformers.
        """
        where = "prompt.template=chat"
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise SettingsError(
                f"{where}: the tokenizer has no chat template, or none that is its default: set prompt.chat_template to"
                " a file with one, or prompt.template=vicuna_v1 (or plain, for captions)"
            ) from error
        try:
            self._check_clock()
            for rounds in (1, 3):
                self._check_rows(_probe(rounds))
            if "{% generation" in template or "{%- generation" in template:
                self._check_marks(_probe(3))
        except DataError as error:
            raise SettingsError(f"{where}: {str(error).replace(_MEND, _CHOOSE)}") from error
        try:
            for rounds in (1, 3) if system is not None else ():
                self._check_rows([{"role": "system", "content": system}, *_probe(rounds)])
        except DataError as error:
            what = str(error).removesuffix(f": {_MEND}").removesuffix(f": {_CHOOSE}")
            raise SettingsError(f"prompt.system: {what}: set prompt.system=null") from error

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids of the special tokens that answers are trained to end with."""
        ends = [piece.text for piece in self.write(_probe(3), False) if isinstance(piece, Spelled) and piece.trained]
        return tuple(self.pieces.special_tokens[end] for end in dict.fromkeys(ends))

    def tokens(self, messages: Sequence[Message], asks: bool) -> tuple[list[int], list[bool]]:
        """Ids of a conversation without images, and which of them are trained."""
        written = self.write(messages, asks)
        parts = self.pieces([Text(p.text, p.trained) if isinstance(p, Said) else p for p in written])
        spans = [part for part in parts if isinstance(part, TextSpan)]
        return [i for span in spans for i in span.ids], [t for span in spans for t in span.trained]

    def _check_clock(self) -> None:
        """Rows that hold today's date would be others tomorrow."""
        try:
            self.render(_probe(1), False, strftime_now="")
        except DataError:
            self.render(_probe(1), False)
            raise DataError(f"the chat template writes today's date: {_CHOOSE}") from None

    def _check_rows(self, messages: Sequence[Message]) -> None:
        """Its tokens are those of transformers, and training shows what generation does."""
        ids, trained = self.tokens(messages, False)
        asked, _ = self.tokens(messages[:-1], True)
        theirs = self.render(messages, False, tokenize=True, return_dict=False)
        if ids != theirs or asked != self.render(messages[:-1], True, tokenize=True, return_dict=False):
            raise DataError(
                f"the chat template's rows are not those of transformers' own apply_chat_template: {_CHOOSE}"
            )
        if asked != ids[: len(asked)] or any(trained[: len(asked)][-1:]) or not trained[len(asked)]:
            raise DataError(
                "the chat template's prompt for an answer has other tokens than a row has before one, as where a space"
                f" at its end becomes one token with the answer: {_CHOOSE}"
            )

    def _check_marks(self, messages: Sequence[Message]) -> None:
        """What is trained is marked as the assistant's, where a template marks that."""
        encoded = self.render(messages, False, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        _, trained = self.tokens(messages, False)
        if any(is_trained and not mask for is_trained, mask in zip(trained, encoded["assistant_masks"], strict=True)):
            raise DataError(
                "the chat template's marks {% generation %} leave out answers, or the tokens that end them: put both"
                " inside, or set prompt.chat_template to a file with another"
            )

    @cached_property
    def _special_token(self) -> re.Pattern[str]:
        longest_first = sorted(self.pieces.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def _probe(rounds: int) -> list[Message]:
    """A conversation that no template should stumble over."""
    said = ("Is it 1 or 2?\n\nAnswer.", "It is 2.", "Why?", "So it says.", "No 3?", "No")
    return _messages(("user", "assistant") * rounds, said[: 2 * rounds])


def _messages(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _find(rendered: str, literals: Sequence[str], texts: Sequence[str]) -> list[str]:
    """How the texts stand in what was rendered, each between two of the literals: as they are, or without blanks.

    Raises:
        DataError: One stands there otherwise.
    """
    found, end = [], len(literals[0])
    fault = "" if rendered.startswith(literals[0]) else "its beginning"
    for text, literal in zip(texts if not fault else (), literals[1:], strict=not fault):
        ways = (text, *(trim(text, blanks) for blanks in (None, "\n") for trim in (str.strip, str.lstrip, str.rstrip)))
        said = next((way for way in ways if rendered.startswith(way + literal, end)), None)
        if said is None:
            is_there = any(rendered.startswith(way, end) for way in ways)
            fault = f"what follows {shown(text)}" if is_there else shown(text)
            break
        found.append(said)
        end += len(said) + len(literal)
    if fault or end != len(rendered):
        raise DataError(
            f"the chat template writes {fault or 'its end'} otherwise than it stands in the conversation: {_MEND}",
            ProblemKind.CHAT_TEMPLATE,
        )
    return found
