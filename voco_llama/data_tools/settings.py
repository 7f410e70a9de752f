"""What `data check`, `data stats` and `data preview` read: the settings of a training, and these."""

from dataclasses import dataclass, field

from voco_llama.choices import MEDIA_DEPTHS
from voco_llama.errors import SettingsError
from voco_llama.settings import TrainSettings
from voco_llama.training.checks import check_settings


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
        SettingsError: The first contradiction found.
    """
    if settings.samples < 1:
        raise SettingsError(f"samples is {settings.samples}: give at least 1")
    check_settings(settings, paths=False)
