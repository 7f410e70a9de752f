"""One job in this process: the base stages of a seed, or a row's training and evaluations."""

import logging
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from voco_llama.errors import SettingsError, VoCoError
from voco_llama.sweep.lock import locked
from voco_llama.sweep.plan import BASE, TRAIN, Command, Job, SeedPlan
from voco_llama.sweep.records import Records

logger = logging.getLogger(__name__)


class LaunchError(VoCoError):
    """A training under a launcher failed; what it printed says why."""


def run_base(plan: SeedPlan, records: Records, training: bool, launcher: str | None = None) -> None:
    """Run what is not finished of a seed's base stages.

    Args:
        plan: Of the seed.
        records: Compose and run its commands.
        training: Whether rows will be trained, or evaluated only.
        launcher: Put before trainings.
    """
    with locked(plan.runs / f".{BASE}.lock"):
        for command in records.pending_base(plan, training):
            _run(command, records, launcher)


def run_row(job: Job, records: Records, launcher: str | None = None) -> None:
    """Train a row unless it is trained, make the results that are not there, and record each.

    Args:
        job: The row.
        records: Compose and run its commands.
        launcher: Put before the training.
    """
    with locked(job.run_folder.with_name(f".{job.row}.lock")):
        if not records.is_trained(job):
            _run(job.train, records, launcher)
        for result, command in records.pending(job).items():
            _run(command, records, None)
            records.add(job, result)


def launcher_arguments(launcher: str) -> list[str]:
    """A launcher's program, looked for beside this Python's too, and its arguments.

    Raises:
        SettingsError: Its program is not found.
    """
    program, *arguments = shlex.split(launcher) or [""]
    found = shutil.which(program) or shutil.which(program, path=Path(sys.executable).parent)
    if found is None:
        raise SettingsError(f"launcher: '{program}' is not found: give its full path, or launcher=null")
    return [found, *arguments]


def _run(command: Command, records: Records, launcher: str | None) -> None:
    logger.info("%s", command)
    if command.name == TRAIN and launcher is not None:
        _launch([*launcher_arguments(launcher), "-m", "voco_llama.cli", command.name, *command.arguments])
    else:
        records.run(command)


def _launch(arguments: list[str]) -> None:
    """Run the training's processes; they write where this one does."""
    process = subprocess.Popen(arguments)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if status:
        raise LaunchError(f"'{shlex.join(arguments)}' ended with status {status}: see above")
