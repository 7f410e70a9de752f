"""The errors that a user's input or settings can cause, and those of machines.

Each carries one line: what is wrong, where, and what to do. The command line prints that line and exits with the
error's status; anything else that escapes is a bug and keeps its traceback.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum


class ProblemKind(StrEnum):
    """What can be wrong with a record of a data set, as `voco-llama data check` names and counts it.

    An error is what a training refuses: it stops there, or passes over the record with `data.skip_bad_records`. A note
    is what it takes as it is, and somebody may want to know.

    Conversations that LLaVA-1.5's own code takes are taken as it takes them (its `preprocess_v1`), and noted:

    - `left_out_turn`: a first turn that is the assistant's is left out, with its `<image>` mark if it has one.
    - `empty_turn`: of `USER:` or `ASSISTANT:` without text nothing is written but the role: no space, and no `</s>`.
      Only blanks are text: they and the `</s>` after them are trained. After an empty question no answer is trained.
    - `unanswered`: where the last turn is the user's, or an empty answer, nothing of the row is trained ("tokenization
      mismatch (ignored)", LLaVA says), unless the tokens up to the last answer's `</s>`, an image counted as one, are
      `data.max_length` or more; then those answers are trained that the cut leaves. An empty question that an answer
      follows is one more such end.
    - `odd_marks`, with the option `marks: llava` of `llava_json`, an error else.

    Where images stand (`prompt.order`) changes nothing of it. The template `plain` writes answers alone, each with a
    newline, and trains them all; of an empty one the newline. The template `chat` writes what the tokenizer's own does,
    and trains each answer that is not empty, whatever its question and the row's end.

    Attributes:
        meaning: In words.
        is_note: Whether it is a note.
    """

    def __new__(cls, name: str, meaning: str, is_note: bool = False) -> "ProblemKind":
        """A text, `name`, with its facts."""
        kind = str.__new__(cls, name)
        kind._value_, kind.meaning, kind.is_note = name, meaning, is_note
        return kind

    meaning: str
    is_note: bool

    UNREADABLE_RECORD = "unreadable_record", "its bytes, its JSON or its columns are broken"
    WRONG_TYPE = "wrong_type", "a part is missing or is not what it should be"
    NO_TURNS = "no_turns", "the conversation is empty"
    ROLES = "roles", "user and assistant do not take turns, or a role is unknown"
    EMPTY_ANSWER = "empty_answer", "a caption or an answer on a clip without text"
    MARK_IN_ANSWER = "mark_in_answer", "an <image> mark in an answer"
    MISSING_MARK = "missing_mark", "fewer <image> marks than images or clips"
    TOO_MANY_MARKS = "too_many_marks", "more <image> marks than images or clips"
    NO_MEDIA_FOLDER = "no_media_folder", "names an image, but the source has no media_folder"
    BAD_FILE_NAME = "bad_file_name", "a file name that is empty or leads out of the folder"
    MISSING_FILE = "missing_file", "an image or a clip that is not there"
    EMPTY_FILE = "empty_file", "an image or a clip of zero bytes"
    UNDECODABLE = "undecodable", "an image or a clip that is corrupt, truncated, too large, or something else"
    IMAGE_CUT = "image_cut", "cutting it to data.max_length would cut an image"
    CHAT_TEMPLATE = "chat_template", "the tokenizer's chat template refuses it, or does not write it as it stands"
    NO_ANSWER_LEFT = "no_answer_left", "cutting it to data.max_length would leave no answer"
    CUT = "cut", "longer than data.max_length: the end of its text is cut", True
    OTHER_FORMAT = "other_format", "an image of another format than its name says", True
    SPECIAL_TOKEN_TEXT = "special_token_text", "text that spells out a special token; it is read as text", True
    DUPLICATE = "duplicate", "the same conversation on the same media as an earlier record", True
    REPEATED_ID = "repeated_id", "an id that records of different content share", True
    LEFT_OUT_TURN = "left_out_turn", "its first turn is the assistant's: that is left out, as LLaVA does", True
    EMPTY_TURN = (
        "empty_turn",
        "a question or an answer without text: its row is as LLaVA, or the chat template, has it",
        True,
    )
    UNANSWERED = "unanswered", "ends without an answer: under vicuna_v1 nothing of it is trained, as LLaVA does", True
    ODD_MARKS = "odd_marks", "<image> marks that do not fit its images, read as LLaVA does", True


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(error: BaseException, length: int = 300) -> str:
    """The text of another library's error on one line, cut to a length, or the error's type where it has no text."""
    text = " ".join(str(error).split())
    if "weights_only" in text or "trust_remote_code" in text:  # the advice is to run the code that comes with it
        text = text.partition(". ")[0]
    return text[:length] or type(error).__name__


def shown(value: object) -> str:
    """A value from a file as messages show it: quoted, on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def own_line(error: "VoCoError") -> str:
    """The line of an error of ours, also of one that came out of a `DataLoader` worker.

    PyTorch raises a worker's error anew in the main process, of the same type, with the whole traceback as its text.
    Our messages are one line, so it is the traceback's last, after the type's name.
    """
    text = str(error).strip()
    if "\n" not in text:
        return text
    return text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


class VoCoError(ValueError):
    """A mistake in what the user gave us; its text is one line fit to be shown.

    Attributes:
        status: The exit status.
    """

    status = 2


class SettingsError(VoCoError):
    """A setting is unknown, contradicts another, or names something that is not there."""


class DataError(VoCoError):
    """A record, an image, a clip or an index cannot be used; the text names the file and the record.

    Attributes:
        kind: What `voco-llama data check` counts it as.
    """

    def __init__(self, message: str, kind: ProblemKind = ProblemKind.UNREADABLE_RECORD) -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(VoCoError):
    """A checkpoint or a cache cannot be loaded here, or does not fit the model."""


class LostError(VoCoError):
    """A process of a training is gone, or stands still: no mistake, and the same command may go on after it."""

    status = os.EX_TEMPFAIL


@contextmanager
def refused_as(error: type[VoCoError], what: object, advice: str = "") -> Iterator[None]:
    """Whatever exception a library meets a user's file with becomes one of ours: `what: cannot be read (why): advice`.

    Put it around calls that decode what a user gave us and nothing else: on damaged files libraries raise exceptions of
    any type. Errors of ours pass as they are; a bug of ours inside would lose its traceback.

    Raises:
        VoCoError: Of the type `error`, where the block raised.
    """
    try:
        yield
    except VoCoError:
        raise
    except Exception as caught:
        raise error(f"{what}: cannot be read ({one_line(caught)})" + (f": {advice}" if advice else "")) from caught


def require(holds: bool, message: str) -> None:
    """Raise a `SettingsError` of this message if a condition does not hold."""
    if not holds:
        raise SettingsError(message)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGUSR1; its text is one line fit to be shown.

    Attributes:
        status: The exit status.
        together: Whether all processes of a training leave it at the same step.
    """

    def __init__(self, number: int, message: str, together: bool = False) -> None:
        super().__init__(message)
        self.status = 128 + number
        self.together = together
