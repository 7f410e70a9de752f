"""What `voco-llama data preview` reads."""

from dataclasses import dataclass

from voco_llama.errors import SettingsError
from voco_llama.settings import TrainSettings
from voco_llama.training.checks import check_settings


@dataclass(kw_only=True)
class PreviewSettings(TrainSettings):
    """What `voco-llama data preview` reads: the settings of a training, and these.

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
