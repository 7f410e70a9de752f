"""What the commands over data sets read: but for `data prepare`, the settings of a training, and these."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from voco_llama.choices import MEDIA_DEPTHS
from voco_llama.errors import SettingsError, one_line
from voco_llama.settings import TrainSettings
from voco_llama.training.checks import check_settings
from voco_llama.training.inputs import check_inputs


@dataclass(frozen=True)
class DataPrepareSettings:
    """What `voco-llama data prepare` reads.

    Attributes:
        folder: Of the data; the places of the sets are below it.
        hub: Folder that holds the data sets of questions on clips, `<hub>/<owner>/<name>`.
        set: Which set; null lists all of them.
        archives: Another folder in which downloaded files are looked for.
        annotations: For `msvd_qa` and `msrvtt_qa`, as are the rest: the JSON list of questions with their answers, or
            the one of questions alone.
        videos: The folder of clips, each `<name>` with one of the usual endings.
        answers: The JSON list of answers, where `annotations` has the questions alone.
        mapping: MSVD's `youtube_mapping.txt` (lines `<clip> vid<number>`); null: clips are named by number.
        allow_missing: Leave out the questions whose clip is not there, instead of stopping.
    """

    folder: Path
    hub: Path
    set: str | None = None
    archives: Path | None = None
    annotations: Path | None = None
    videos: Path | None = None
    answers: Path | None = None
    mapping: Path | None = None
    allow_missing: bool = False


@dataclass
class DataCheckSettings(TrainSettings):
    """What `voco-llama data check` reads.

    Attributes:
        report: JSON file to write, with every problem; null prints the summary alone.
        cleaned: A new or empty folder for the records that can be trained on; null writes none.
        drop: Kinds of notes (`duplicate`, `cut`, ...) whose records are left out of `cleaned` too.
        media: How images and clips are looked at: `decode` all of each, read its `header`, or see that it `exists`.
        workers: Processes; null: one for each core, 0: this one alone.
    """

    report: str | None = None
    cleaned: str | None = None
    drop: list[str] = field(default_factory=list)
    media: str = field(default="decode", metadata={"choices": MEDIA_DEPTHS})
    workers: int | None = None


@dataclass
class DataStatsSettings(TrainSettings):
    """What `voco-llama data stats` reads.

    Attributes:
        output: JSON file to write; null prints the table alone.
        sample: Records of each source that are read, drawn by `seed`; 0 = all of them.
        workers: Processes that read; null: one for each core, 0: this one alone.
    """

    output: str | None = None
    sample: int = 10_000
    workers: int | None = None


@dataclass(kw_only=True)
class PreviewSettings(TrainSettings):
    """What `voco-llama data preview` reads.

    Attributes:
        samples: How many are shown, the first of the mixture in its shuffled order, which depends on the seed.
        records: Shows these records instead, by their numbers in the file of `source`, counted from 0.
        source: Number of the source in `data.sources` that `records` is about.
        output: Folder of the page.
    """

    samples: int
    records: list[int] | None = None
    source: int = 0
    output: str


def check_preview(settings: PreviewSettings) -> None:
    """Refuse settings that contradict each other; files of weights need not be there.

    Raises:
        SettingsError: The first contradiction found, or a data set is not here.
    """
    if settings.samples < 1:
        raise SettingsError(f"samples is {settings.samples}: give at least 1")
    check_data_settings(settings)


def check_data_settings(settings: TrainSettings) -> None:
    """Refuse what a training with these settings would refuse before it reads its data.

    Raises:
        SettingsError: A contradiction, or a data set that is not here.
    """
    check_settings(settings, paths=False)
    check_inputs(settings, part="data")


ROW_GROUPS = ("experiment", "model")
"""Without one of these among the overrides it is not known whose rows are meant: the model is the toy world's."""


def check_rows_named(overrides: Sequence[str]) -> None:
    """Refuse overrides that name no training, and so neither its tokenizer nor, with sources of one's own, its limits.

    Raises:
        SettingsError: It says what to name.
    """
    keys = [text.lstrip("+").partition("=") for text in overrides]
    if not any(key.partition(".")[0] in ROW_GROUPS and value != "null" for key, _, value in keys):
        raise SettingsError(
            "no training is named, so its rows are not known: add its experiment=..., or model=... with prompt=... and"
            " data.max_length=..."
        )


JSON_BEGINNING = '{\n  "settings": {'
"""Of the JSON files that commands over data write."""


def check_output(key: str, file: Path, beginning: str) -> None:
    """Refuse, before anything is read, an output that cannot be written or would replace what is not ours.

    Args:
        key: The setting that names it.
        file: What is to be written.
        beginning: Of every such file.

    Raises:
        SettingsError: It is a folder, a file that begins otherwise, or in a folder that cannot be written.
    """
    if file.is_dir():
        raise SettingsError(f"{key}: {file} is a folder; give the name of a file")
    with writing(key, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
        if file.exists():
            with file.open("rb") as stream:
                head = stream.read(len(beginning.encode()))
            if head and head != beginning.encode():
                raise SettingsError(f"{key}: {file} is there and was not written by this command; give another name")


@contextmanager
def writing(key: str, path: Path) -> Iterator[None]:
    """Raise a `SettingsError` where the output that a setting names cannot be written."""
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{key}: {path} cannot be written ({one_line(error)}); give a place elsewhere") from error
