"""Turns as data sets write them, whatever file they stand in: conversations, and captions after an instruction."""

import random
from collections.abc import Sequence
from typing import Any

from voco_llama.data.readers.record_files import Report, shown, stop
from voco_llama.data.records import IMAGE_MARK, Role, Turn
from voco_llama.errors import DataError, SettingsError

ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_turns(conversations: Any, source: str, key: str = "conversations", report: Report = stop) -> tuple[Turn, ...]:
    """The turns of a LLaVA record.

    Args:
        conversations: Its list of objects with `from` and `value`, of any type until it was checked here.
        source: Where the record stands, for messages.
        key: What messages call the list.
        report: Takes each problem; a turn that is none is left out.

    Raises:
        DataError: It is no such list, roles do not take turns, an answer is empty, or the last turn has none; unless
            `report` takes it.
    """
    if not isinstance(conversations, list):
        report(DataError(f"{source}: no {key!r} list; each record needs one", "wrong_type"))
        return ()
    if not conversations:
        message = f"{source}: {key!r} is empty; give it a question and an answer, or take the record out"
        report(DataError(message, "no_turns"))
        return ()
    turns: list[Turn] = []
    expected: Role = "user"
    for number, entry in enumerate(conversations):
        turn = _turn(entry, number, expected, source, report)
        if turn is not None:
            turns.append(turn)
        role = expected if turn is None else turn.role
        expected = "user" if role == "assistant" else "assistant"
    if turns and turns[-1].role == "user":
        report(DataError(f"{source}: ends with a user turn; add its answer, or take the turn out", "roles"))
    return tuple(turns)


def _turn(entry: Any, number: int, expected: Role, source: str, report: Report) -> Turn | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        message = f"{source}: turn {number} is not an object with 'from' and a text in 'value'; write it so"
        report(DataError(message, "wrong_type"))
        return None
    name = entry.get("from")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        message = f"{source}: turn {number} is from {shown(name)}, an unknown role; known: {', '.join(ROLES)}"
        report(DataError(message, "roles"))
        return None
    if role != expected:
        message = (
            f"{source}: turn {number} is from {shown(name)} where the {expected}'s turn belongs; "
            "user and assistant take turns, the user first"
        )
        report(DataError(message, "roles"))
    if role == "assistant" and not entry["value"].strip():
        message = f"{source}: the answer in turn {number} is empty; fill it in, or take the record out"
        report(DataError(message, "empty_answer"))
    return Turn(role, entry["value"])


def check_instructions(instruction: str | Sequence[str], format: str) -> tuple[str, ...]:
    """The instructions that the records of a caption format choose from.

    Raises:
        SettingsError: There is none, or one is empty or has an `<image>` mark in it.
    """
    instructions = (instruction,) if isinstance(instruction, str) else tuple(instruction)
    if not instructions or not all(text.strip() for text in instructions):
        raise SettingsError(f"{format}: instruction is empty; give one or several, or leave the setting out")
    if any(IMAGE_MARK in text for text in instructions):
        raise SettingsError(f"{format}: an instruction holds {IMAGE_MARK}; leave it out, it is put before it")
    return instructions


def caption_turns(instructions: Sequence[str], seed: int, index: int, caption: str) -> tuple[Turn, ...]:
    """An instruction after the image or clip, the caption as its answer; which one is a function of seed and index."""
    instruction = random.Random(f"{seed}:{index}").choice(instructions)
    return Turn("user", f"{IMAGE_MARK}\n{instruction}"), Turn("assistant", caption)
