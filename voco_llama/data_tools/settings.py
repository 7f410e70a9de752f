"""What `data check` and `data stats` read: the settings of a training, and these."""

from dataclasses import dataclass, field

from voco_llama.choices import MEDIA_DEPTHS
from voco_llama.settings import TrainSettings


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
        processes: Of the training, for the number of its steps.
        workers: Processes that read; null: one for each core, 0: this one alone.
    """

    output: str | None = None
    sample: int = 10_000
    processes: int = 1
    workers: int | None = None
