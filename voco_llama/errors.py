"""The errors that a user's input or settings can cause.

Each carries one line: what is wrong, where, and what to do. The command line prints that line and exits with
status 2; anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Sequence


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(error: BaseException, length: int = 300) -> str:
    """The text of another library's error on one line, cut to a length, or the error's type where it has no text."""
    return " ".join(str(error).split())[:length] or type(error).__name__


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
    """A mistake in what the user gave us; its text is one line fit to be shown."""


class SettingsError(VoCoError):
    """A setting is unknown, contradicts another, or names something that is not there."""


class DataError(VoCoError):
    """A record, an image, a clip or an index cannot be used; the text names the file and the record.

    Attributes:
        kind: What `voco-llama data check` counts it as (`voco_llama.data_tools.check.kinds`).
    """

    def __init__(self, message: str, kind: str = "unreadable_record") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(VoCoError):
    """A checkpoint or a cache cannot be loaded here, or does not fit the model."""


def require(holds: bool, message: str) -> None:
    """Raise a `SettingsError` of this message if a condition does not hold."""
    if not holds:
        raise SettingsError(message)
