"""The record that every reader yields, and what all readers check of it: one conversation and the files it looks at.

A record is plain data, cheap to pickle to worker processes; nothing is decoded here. The mark `<image>` in a
turn's text stands where an image (or, for a clip, all its frames) belongs.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voco_llama.data.media.stored import MediaFile
from voco_llama.errors import DataError, ProblemKind, SettingsError, refused_as, shown

IMAGE_MARK = "<image>"

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One utterance. `text` keeps its newlines and its `<image>` marks exactly as the file had them."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """One training sample.

    Attributes:
        id: The record's own id, or its index if the file gives none.
        turns: User and assistant by turns, the user first.
        images: Image files, one for each `<image>` mark, in order. Empty for text-only records and clips; in a record
            that looks at nothing, `<image>` is text.
        video: A clip; its frames replace the record's single `<image>` mark.
        source: Where the record stands, for messages: `file.json record 17 (id 'x')`.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[MediaFile, ...] = ()
    video: MediaFile | None = None
    source: str = ""


Report = Callable[[DataError], None]
"""Takes what is wrong with a record: raises it (`stop`), or collects it, and reading goes on."""


def stop(error: DataError) -> None:
    """The `Report` of a reader that reads: the first error ends it; notes do not."""
    if not error.kind.is_note:
        raise error


@dataclass(frozen=True)
class Sizes:
    """How much there is in each record, known without decoding or even validating it.

    Attributes:
        characters: `[records]` int32, text in UTF-8 bytes (nearer to tokens than characters are), about.
        media: `[records]` int32, images or clips; 0 = text-only.
        medium: `[records]` int64, the same where all images, or the clip, are named the same; 0 = text-only. None: not
            known without reading the images.
    """

    characters: np.ndarray
    media: np.ndarray
    medium: np.ndarray | None


class Reader(Sequence[Record]):
    """What every reader is: a sequence of records, picklable, with their sizes known beforehand.

    `[index]` raises a `DataError` where the record is not valid, whatever is wrong with it, and an `IndexError` where
    there is none. `read` hands each problem that need not end the reading to `report`, which by default raises errors;
    what it does not raise is left out of the record.
    """

    file: Path
    sizes: Sizes

    def read(self, index: int, report: Report = stop) -> Record:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        self.check_index(index)
        with blaming_record(self.file, index):
            return self.read(index)

    def check_index(self, index: int) -> None:
        """Raises an `IndexError` where there is no such record."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.file} has {len(self)} records, no record {index}")


def name_record(file: Path, index: int, key: str = "", value: object = None) -> str:
    """`file.json record 17 (id 'x')`; records count from 0."""
    return f"{file} record {index}" + (f" ({key} {shown(value)})" if value is not None else "")


@contextmanager
def blaming_record(file: Path, index: int) -> Iterator[None]:
    """Around whatever is done with one record: any exception of a library becomes a `DataError` that names it."""
    with refused_as(DataError, name_record(file, index), "mend it, or take it out"):
        yield


def check_marks(turns: Sequence[Turn], num_media: int, source: str, kind: str = "image", report: Report = stop) -> None:
    """Makes sure that each image or clip has its `<image>` mark, in a user turn, and each mark its image.

    Raises:
        DataError: The numbers differ, or an answer holds a mark; unless `report` takes it.
    """
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns if turn.role == "user")
    if any(IMAGE_MARK in turn.text for turn in turns if turn.role == "assistant"):
        message = f"{source}: an answer holds an {IMAGE_MARK} mark; marks belong in user turns"
        report(DataError(message, ProblemKind.MARK_IN_ANSWER))
    if marks != num_media:
        message = (
            f"{source}: {marks} {IMAGE_MARK} mark{'' if marks == 1 else 's'} but {num_media} {kind}"
            f"{'' if num_media == 1 else 's'}; write one mark for each, where it belongs in the text"
        )
        report(DataError(message, ProblemKind.MISSING_MARK if marks < num_media else ProblemKind.TOO_MANY_MARKS))


def check_file(file: Path) -> None:
    """Raises a `DataError` where `file` is not a file that can be read."""
    with refused_as(DataError, file, "check the path of the data set"):
        if file.is_dir():
            raise DataError(f"{file}: is a folder; name the file of the data set in it")
        if not file.is_file():
            raise DataError(f"{file}: no such file; check the path of the data set")
        file.open("rb").close()


ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def read_turns(conversations: Any, source: str, key: str = "conversations", report: Report = stop) -> tuple[Turn, ...]:
    """The turns of a LLaVA record: those that LLaVA's own code takes, `ProblemKind` says how, and no others.

    Args:
        conversations: Its list of objects with `from` and `value`, of any type until it was checked here.
        source, key: Where the record stands and what the list is called, for messages.
        report: Takes each problem; a turn that is none is left out.

    Raises:
        DataError: It is no such list, or roles do not take turns; unless `report` takes it.
    """
    if not isinstance(conversations, list):
        report(DataError(f"{source}: no {key!r} list; each record needs one", ProblemKind.WRONG_TYPE))
        return ()
    if not conversations:
        message = f"{source}: {key!r} is empty; give it a question and an answer, or take the record out"
        report(DataError(message, ProblemKind.NO_TURNS))
        return ()
    turns: list[Turn] = []
    expected: Role = "user"
    for number, entry in enumerate(conversations):
        role = _role(entry)
        if number == 0 and role == "assistant":
            message = f"{source}: turn 0 is from {shown(entry['from'])} and is left out, as the user begins"
            report(DataError(message, ProblemKind.LEFT_OUT_TURN))
            continue
        turn = _turn(entry, number, expected, source, report)
        if turn is not None:
            turns.append(turn)
        role = expected if turn is None else turn.role
        expected = "user" if role == "assistant" else "assistant"
    is_answered = bool(turns) and turns[-1].role == "assistant" and bool(turns[-1].text)
    if is_complete(turns, conversations) and not is_answered:
        message = f"{source}: ends without an answer; add it, or take the record out"
        report(DataError(message, ProblemKind.UNANSWERED))
    return tuple(turns)


def is_complete(turns: Sequence[Turn], conversations: Any) -> bool:
    """Whether `read_turns` took all turns, but for a first one that is the assistant's."""
    if not isinstance(conversations, list) or not conversations:
        return False
    return len(turns) == len(conversations) - (_role(conversations[0]) == "assistant")


def _role(entry: Any) -> Role | None:
    name = entry.get("from") if isinstance(entry, dict) else None
    return ROLES.get(name) if isinstance(name, str) else None


def _turn(entry: Any, number: int, expected: Role, source: str, report: Report) -> Turn | None:
    where = f"{source}: turn {number}"
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        message = f"{where} is not an object with 'from' and a text in 'value'; write it so"
        report(DataError(message, ProblemKind.WRONG_TYPE))
        return None
    name, role = entry.get("from"), _role(entry)
    if role is None:
        message = f"{where} is from {shown(name)}, an unknown role; known: {', '.join(ROLES)}"
        report(DataError(message, ProblemKind.ROLES))
        return None
    if role != expected:
        message = f"{where} is from {shown(name)} where the {expected}'s turn belongs"
        report(DataError(f"{message}; user and assistant take turns, the user first", ProblemKind.ROLES))
    if not entry["value"].strip():
        noun = "answer" if role == "assistant" else "question"
        message = f"{source}: the {noun} in turn {number} is empty; fill it in, or take the record out"
        report(DataError(message, ProblemKind.EMPTY_TURN))
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
