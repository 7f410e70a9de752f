"""A suite: which columns a result has, and which task of lmms-eval gives each. Suites are files in `eval/suites/`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from voco_llama.composition import did_you_mean
from voco_llama.errors import SettingsError
from voco_llama.evaluation.tasks import GROUPS, check_task
from voco_llama.report.paper import EVAL_DIR

SUITES_DIR, TASKS_DIR = EVAL_DIR / "suites", EVAL_DIR / "tasks"


@dataclass(frozen=True)
class SuiteRow:
    """A row of a table.

    Attributes:
        checkpoint: Folder of a saved model, below the folder of runs.
        condition: `voco`, `full` or `blind`.
        num_voco: VoCo tokens an image; None: as trained.
    """

    checkpoint: str
    condition: str = "voco"
    num_voco: int | None = None


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
    rows: dict[str, "SuiteRow"] = field(default_factory=dict)


def read_suite(name: str, folder: Path = SUITES_DIR) -> Suite:
    """Read `<folder>/<name>.yaml`.

    Raises:
        SettingsError: There is no such suite, or its file has an unknown key, no columns, or an unknown task.
    """
    there = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in there:
        raise SettingsError(f"there is no suite {name!r}{did_you_mean(name, there)}: choose from {', '.join(there)}")
    file = folder / f"{name}.yaml"
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = [entry.name for entry in dataclasses.fields(Suite)]
    if not isinstance(read, dict) or not set(read) <= set(known) or not read.get("columns"):
        raise SettingsError(f"{file}: a suite has columns (column: task), and no keys but {', '.join(known)}: mend it")
    for task in read["columns"].values():
        check_task(task)
    try:
        rows = {row: SuiteRow(**described) for row, described in (read.get("rows") or {}).items()}
    except TypeError as error:
        raise SettingsError(f"{file}: a row has checkpoint, condition and num_voco: mend it ({error})") from error
    return Suite(**{**read, "rows": rows})


def columns_of(tasks: Sequence[str]) -> dict[str, str]:
    """Column to task for tasks named one by one: each is a column of its own name, a group as many as it has tasks.

    Raises:
        SettingsError: A task is unknown, or named twice.
    """
    names = [name for task in tasks for name in GROUPS.get(task, (task,))]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SettingsError(f"task {twice[0]} is named twice: name it once")
    for name in names:
        check_task(name)
    return {name: name for name in names}
