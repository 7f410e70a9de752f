"""The errors that a user's input or settings can cause.

Each carries one line: what is wrong, where, and what to do. The command line prints that line and exits with
status 2; anything else that escapes is a bug and keeps its traceback.
"""


def first_line(error: BaseException, length: int = 300) -> str:
    """The first line of another library's error, cut to a length, or the error's type where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


class VoCoError(ValueError):
    """A mistake in what the user gave us; its text is one line fit to be shown."""


class SettingsError(VoCoError):
    """A setting is unknown, contradicts another, or names something that is not there."""


class DataError(VoCoError):
    """A record, an image, a clip or an index cannot be used; the text names the file and the record.

    Attributes:
        kind: What `voco-llama data check` counts it as (`voco_llama.data_tools.kinds`).
    """

    def __init__(self, message: str, kind: str = "unreadable_record") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(VoCoError):
    """A checkpoint or a cache cannot be loaded here, or does not fit the model."""
