r"""A question with what was said before it: messages, in the form that transformers takes them, become turns.

    [{"role": "system", "content": "Be brief."},
     {"role": "user", "content": "<image>\nWhat is it?"},
     {"role": "assistant", "content": "A cat."},
     {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]}]

A system message may come first; user and assistant take turns, the user first and last. Images stand where user turns
have `<image>`, or a part `{"type": "image"}`, which says the same; what they show is passed beside the messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from voco_llama.data.prompts import with_marks
from voco_llama.data.records import IMAGE_MARK, Role, Turn
from voco_llama.errors import DataError, shown

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What is to be answered.

    Attributes:
        turns: User and assistant by turns, the user first and last.
        system: Takes the place of the prompt style's system text; None: that stays.
    """

    turns: tuple[Turn, ...]
    system: str | None = None

    @property
    def num_marks(self) -> int:
        """Marks `<image>` of all its turns."""
        return sum(turn.text.count(IMAGE_MARK) for turn in self.turns)

    def looking_at(self, counts: Sequence[int]) -> "Conversation":
        """The conversation with a mark for every image that it looks at, by the rule of `with_marks_in`."""
        texts = iter(with_marks_in([turn.text for turn in self.turns if turn.role == "user"], counts))
        turns = (replace(turn, text=next(texts)) if turn.role == "user" else turn for turn in self.turns)
        return replace(self, turns=tuple(turns))


Prompt = str | Sequence[Message] | Conversation
"""What may be asked: a text, or a conversation that ends with the user's turn."""


def conversations_of(prompts: Prompt | Sequence[Prompt]) -> list[Conversation]:
    """One question, or several, of any form, as conversations.

    Raises:
        DataError: One is no conversation; it is named by its place among several.
    """
    if isinstance(prompts, str | Conversation) or _is_messages(prompts):
        return [_conversation(prompts, "the conversation")]
    return [_conversation(prompt, f"conversation {number}") for number, prompt in enumerate(prompts)]


def read_messages(messages: Any, where: str, ends_with: Role = "user") -> Conversation:
    """Messages that were checked.

    Args:
        messages: Of any type until it was checked here.
        where: What to call it in messages to the user.
        ends_with: Whose turn the last one is: the user's, to be answered, or the assistant's, in a history, which may
            also end before any turn.

    Raises:
        DataError: They are no conversation; it names the message, counted from 0.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(f"{where} is {shown(messages)}: {_FORM}")
    system, turns = None, []
    for number, message in enumerate(messages):
        at = f"{where}: message {number}"
        role = _role(message, at)
        text = _text(message["content"], at)
        _check_whole(text, at)
        if role == "system":
            if number > 0:
                raise DataError(f"{at} is the system's: the first message may be, no other")
            system = text
        else:
            expected = "assistant" if turns and turns[-1].role == "user" else "user"
            if role != expected:
                raise DataError(
                    f"{at} is the {role}'s where the {expected}'s turn belongs: the user begins, and they take turns"
                )
            turns.append(Turn(role, text))
        if role != "user" and IMAGE_MARK in text:
            raise DataError(f"{at} is the {role}'s and holds {IMAGE_MARK}: only what the user says has images")
    if ends_with == "user" and not turns:
        raise DataError(f"{where} is empty: give a user's turn to answer")
    if turns and turns[-1].role != ends_with:
        todo = "end it with the user's turn, to be answered" if ends_with == "user" else "end it with an answer"
        raise DataError(f"{where} ends with the {turns[-1].role}'s turn: {todo}")
    return Conversation(tuple(turns), system)


def with_marks_in(texts: Sequence[str], counts: Sequence[int]) -> list[str]:
    """What a user says in the turns of one conversation, with a mark for every image that it looks at.

    The one rule of `voco_llama.data.prompts.with_marks`, over all of them: their own marks say where each thing looked
    at stands, if they are as many together; otherwise all of it stands before the first turn.
    """
    if sum(text.count(IMAGE_MARK) for text in texts) == len(counts):
        rest = iter(counts)
        return [with_marks(text, [next(rest) for _ in range(text.count(IMAGE_MARK))]) for text in texts]
    first, *others = (with_marks(text, []) for text in texts)
    return [with_marks(first, counts), *others]


_FORM = "give a text, or a list of messages, [{'role': 'user', 'content': 'What is it?'}]"


def _is_messages(prompts: Any) -> bool:
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], Mapping)


def _conversation(prompt: Prompt, where: str) -> Conversation:
    if isinstance(prompt, str):
        prompt = Conversation((Turn("user", prompt),))
    if not isinstance(prompt, Conversation):
        return read_messages(prompt, where)
    for text in (prompt.system or "", *(turn.text for turn in prompt.turns)):
        _check_whole(text, where)
    return prompt


def _role(message: Any, at: str) -> str:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise DataError(f"{at} is {shown(message)}: give each 'role' and 'content'")
    if other := [key for key in message if key not in ("role", "content") and message[key]]:
        raise DataError(f"{at} has {shown(other[0])}, which no prompt says: leave it out")
    if message["role"] not in ("system", "user", "assistant"):
        raise DataError(f"{at} is from {shown(message['role'])}, an unknown role: known are system, user, assistant")
    return message["role"]


def _check_whole(text: str, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # of JSON's escapes, or of a command line in another coding
        raise DataError(f"{at} holds half a surrogate pair ({shown(text[error.start])}): mend the text") from error


def _text(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise DataError(f"{at} has the content {shown(content)}: give a text, or a list of parts")
    text = ""
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += ("\n" if text.endswith(IMAGE_MARK) else "") + part["text"]
        elif kind == "image" and len(part) == 1:
            text += IMAGE_MARK
        else:
            raise DataError(
                f"{at} has the part {shown(part)}: parts are {{'type': 'text', 'text': ...}} and {{'type': 'image'}},"
                " and the images themselves are passed beside the messages"
            )
    return text
