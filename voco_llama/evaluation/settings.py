"""What `evaluate` is told, and the rows that it stands for.

A suite (a file of `eval/suites/`) says which columns a result has, which task of lmms-eval gives each, and from which
checkpoints the rows of a table come.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voco_llama.choices import ANSWER_CONDITIONS, check_quality, require_choice
from voco_llama.composition import read_file
from voco_llama.config_files import EVAL_DIR, eval_file
from voco_llama.errors import SettingsError, require
from voco_llama.evaluation.results import BENCHMARKS_KIND, check_overwrites, check_row_name, part, result_file
from voco_llama.evaluation.tasks import GROUPS, check_task
from voco_llama.inference import checkpoint_fingerprint, head_fingerprint, saved_config
from voco_llama.llava_folder import check_is_model
from voco_llama.provenance import fingerprint_data

SUITES_DIR = EVAL_DIR / "suites"


@dataclass  # not frozen: OmegaConf does not fill frozen ones in a dictionary
class SuiteRow:
    """A row of a table: its checkpoint, below the folder of runs, and how it is asked (see `EvaluateSettings`)."""

    checkpoint: str
    condition: str | None = "voco"
    num_voco: int | None = None
    quality: float | None = None


@dataclass(frozen=True)
class Suite:
    """Columns and how they are asked.

    Attributes:
        columns: Column to task, in order.
        max_new_tokens: A limit below the tasks' own; None: as each task says.
        keep_answers: lmms-eval writes each answer to disk as it comes, so that a run that was cut off goes on from
            there. It waits for the disk after each one, some milliseconds.
        rows: Row of a table to its checkpoint, for an evaluation that names no row.
    """

    columns: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int | None = None
    keep_answers: bool = True
    rows: dict[str, SuiteRow] = field(default_factory=dict)


def read_suite(name: str, folder: Path = SUITES_DIR) -> Suite:
    """Read a suite by its name, of the user's own folder or `<folder>`, or by its path.

    Raises:
        SettingsError: There is no such suite, or its file has an unknown key, no columns, or an unknown task.
    """
    file = eval_file("suite", name, folder)
    suite = read_file(file, Suite)
    require(bool(suite.columns), f"{file}: a suite has columns (column: task): name at least one")
    for task in suite.columns.values():
        check_task(task)
    return suite


def columns_of(tasks: Sequence[str]) -> dict[str, str]:
    """Column to task for tasks named one by one: each is a column of its own name, a group as many as it has tasks.

    Raises:
        SettingsError: A task is unknown, or named twice.
    """
    names = [name for task in tasks for name in GROUPS.get(task, (task,))]
    for name in names:
        require(names.count(name) == 1, f"task {name} is named twice: name it once")
        check_task(name)
    return {name: name for name in names}


FREE_KEYS = ("output", "device", "overwrite")
"""Beginnings of keys of `EvaluateSettings` that do not touch what is measured."""


@dataclass(frozen=True)
class EvaluateSettings:
    """What to evaluate.

    Attributes:
        checkpoint: Folder of a saved model and its processor; None: that of the suite's row.
        runs: The folder that the suite's checkpoints are below.
        hub: Folder with the data sets, `<hub>/<owner>/<name>`; None: the Hugging Face hub and its cache.
        datasets_cache: Where `datasets` keeps what it makes of the data sets' files.
        output: Folder of the result file, `<row>.benchmarks.json`.
        row: The row's name in the report; None: all rows of the suite.
        condition: `full` (upper bound), `voco`, or `blind` (no image); None: that of the suite's row of this name, else
            the one that the checkpoint was trained with. The lower bound is `voco` on the weights of the upper bound.
        num_voco: VoCo tokens an image; None: that of the suite's row of this name, else as many as the checkpoint was
            trained with.
        quality: Keep of each image the fewest VoCo tokens whose answers stay close to those of all, `num_voco` at most:
            by how much they may differ, in nats an answer token (0.05: closely), as the head foresees that
            `voco-llama fit-quality` fitted to the checkpoint. None: that of the suite's row, else keep `num_voco`.
        suite: A file of `eval/suites/` by name, or the path of one: columns and their tasks.
        tasks: Tasks of lmms-eval by name, in place of the suite's; each is a column of that name.
        max_new_tokens: A limit below the tasks' own; None: the suite's.
        keep_answers: Write each answer to disk as it comes; None: as the suite says.
        limit: Only so many documents a task, for a try; the report refuses such rows unless asked.
        batch_size: Questions, or images to compress, at a time.
        reuse: Compress an image once for all questions on it.
        go_on: List questions that fail, and go on; the report refuses such rows unless asked. Otherwise the first
            one ends the evaluation.
        device: None: the GPU if there is one.
        dtype: Of the weights and the cache; `auto`: as saved.
        seed: Recorded and set; answers are greedy, so nothing depends on it.
        overwrite: Write over a result of another checkpoint, or of other questions or ways of asking; the same
            evaluation's is written anew in any case.
    """

    runs: Path
    hub: Path | None
    datasets_cache: Path
    output: Path
    row: str | None = None
    checkpoint: Path | None = None
    condition: str | None = None
    num_voco: int | None = None
    quality: float | None = None
    suite: str = "toy"
    tasks: list[str] = field(default_factory=list)
    max_new_tokens: int | None = None
    keep_answers: bool | None = None
    limit: int | None = None
    batch_size: int = 32
    reuse: bool = True
    go_on: bool = False
    device: str | None = None
    dtype: str = "auto"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.row is not None:
            check_row_name(self.row)
        if self.condition is not None:
            require_choice("condition", self.condition, ANSWER_CONDITIONS)
        check_counts(self)
        check_quality(self.quality, self.condition)
        tasks = self.columns().columns.values()
        require(
            self.limit is None or self.limit % 2 == 0 or "mme" not in tasks,
            f"limit is {self.limit}, and MME is scored by pairs of questions: give an even one, or tasks without mme",
        )

    def columns(self) -> Suite:
        """The columns of the result; an unknown suite or task is a `SettingsError`."""
        suite = read_suite(self.suite)
        if self.tasks:
            suite = Suite(columns_of(self.tasks), rows=suite.rows)
        own = {name: getattr(self, name) for name in ("max_new_tokens", "keep_answers")}
        return dataclasses.replace(suite, **{name: value for name, value in own.items() if value is not None})


def check_counts(settings: Any) -> None:
    """Refuse a count below one (`SettingsError`)."""
    for name in ("num_voco", "limit", "batch_size", "max_new_tokens"):
        value = getattr(settings, name)
        require(value is None or value >= 1, f"{name} must be at least 1, not {value}")


def rows_of(settings: EvaluateSettings) -> list[EvaluateSettings]:
    """The evaluations that settings stand for: one row each, with its checkpoint.

    Raises:
        SettingsError: A checkpoint is given without a row, the suite has no such row, or no rows.
        CheckpointError: A checkpoint is not there.
    """
    suite, rows = settings.suite, settings.columns().rows
    if settings.checkpoint is not None and settings.row is None:
        raise SettingsError(f"checkpoint={settings.checkpoint} is of no row: name it, as row=voco_1")
    found = []
    for name in rows if settings.row is None else [settings.row]:
        if settings.checkpoint is None and name not in rows:
            there = f"its rows are {', '.join(rows)}" if rows else "it has no rows"
            raise SettingsError(f"row {name} has no checkpoint in suite {suite} ({there}): give checkpoint=...")
        row = rows.get(name) or SuiteRow(str(settings.checkpoint), condition=None)
        found.append(
            dataclasses.replace(
                settings,
                row=name,
                checkpoint=settings.checkpoint or settings.runs / row.checkpoint,
                condition=settings.condition or row.condition,
                num_voco=settings.num_voco or row.num_voco,
                quality=row.quality if settings.quality is None else settings.quality,
            )
        )
    require(bool(found), f"suite {suite} has no rows: give row=... and checkpoint=...")
    for one in found:
        check_is_model(one.checkpoint)
    return found


def fingerprint_asked(data: Any, questions: int | None) -> str:
    """A hash of a column's data, by what identifies it, and of how many questions of it were scored."""
    return fingerprint_data([data, questions])


def check_overwritten(settings: EvaluateSettings, data_sets: Callable[[], Mapping[str, str | None]] = dict) -> None:
    """Refuse to write over a row's result that is not this evaluation's, unless asked to.

    Values are compared as the model will have them, and data sets by content: where a hub lies does not matter.

    Args:
        settings: Of one row.
        data_sets: Gives the fingerprint of each task's data set on the local hub, where they are to be compared; asked
            for only where there is a result.

    Raises:
        SettingsError: It is another one's.
    """
    file = result_file(settings.output, BENCHMARKS_KIND, settings.row)
    if settings.overwrite or not file.is_file():
        return
    suite, config, now = settings.columns(), saved_config(settings.checkpoint), data_sets()
    condition = settings.condition or config.condition
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    here = {
        "columns": suite.columns,
        "max_new_tokens": suite.max_new_tokens,
        "limit": settings.limit,
        "checkpoint": checkpoint_fingerprint(settings.checkpoint),
        "condition": condition,
        "num_voco": (settings.num_voco or config.num_voco) if condition == "voco" else None,
        "quality": settings.quality,
        "quality_head": None if settings.quality is None else head_fingerprint(settings.checkpoint),
        "dtype": str(dtype or settings.dtype).removeprefix("torch."),  # a LLaVA's is known when it is loaded
    }

    def told_apart(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = part(result, "settings")
        there = {key: part(result, "suite").get(key) for key in ("columns", "max_new_tokens")}
        there |= {key: result.get(key) for key in ("limit", "condition", "num_voco", "quality", "quality_head")}
        there |= {"checkpoint": result.get("checkpoint_fingerprint")}
        there |= {"dtype": result.get("kv_dtype") if dtype else asked.get("dtype")}
        hubs = asked.get("hub"), None if settings.hub is None else str(settings.hub)
        if None in hubs:
            return there | {"hub": hubs[0]}, here | {"hub": hubs[1]}
        columns = {**part(result, "benchmarks"), **part(result, "submissions")}
        known = [column for column, task in suite.columns.items() if now.get(task) and column in columns]
        there |= {"data": {column: part(columns, column).get("data_fingerprint") for column in known}}
        sizes = {column: part(columns, column).get("questions") for column in known}
        data = {column: fingerprint_asked(now[suite.columns[column]], sizes[column]) for column in known}
        return there, here | {"data": data}

    check_overwrites(file, told_apart)
