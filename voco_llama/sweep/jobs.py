"""One job, the base stages of a seed or a row's training and evaluations: in this process, or in one of its own.

A folder is worked in by one process at a time. The lock is the operating system's (`flock`), so that it ends with the
process that holds it, however that ends; the file's text, the process id, is for people.
"""

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from voco_llama.errors import SettingsError, VoCoError
from voco_llama.sweep.plan import BASE, TRAIN, Command, Job, SeedPlan
from voco_llama.sweep.records import Records

logger = logging.getLogger(__name__)

SHOWN_LINES = 5
"""Of a failed job's log."""
STOP_SECONDS = 40
"""From the request to end to the kill; torchrun gives its own processes 30."""


class LaunchError(VoCoError):
    """A training under a launcher failed; what it printed says why."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        SettingsError: Another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            opened.seek(0)
            process = opened.read().strip() or "unknown"
            raise SettingsError(
                f"process {process} is at work in {file.parent} (it holds {file.name}): wait for it, or stop it"
            ) from error
        opened.truncate(0)
        opened.write(f"{os.getpid()}\n")
        opened.flush()
        yield


def run_base(plan: SeedPlan, records: Records, training: bool, launcher: str | None = None) -> None:
    """Run what is not finished of a seed's base stages in this process.

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
    """Train a row in this process unless it is trained, make the results that are not there, and record each.

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


class JobProcess:
    """`voco-llama sweep ... job=<name>`, at the head of a process group.

    Args:
        overrides: Of the sweep that this job belongs to.
        name: Of the job.
        log: File that its output is appended to.
        environment: Of the process.
    """

    def __init__(self, overrides: Sequence[str], name: str, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "voco_llama.cli", "sweep", *overrides, f"job={name}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    def failure(self) -> tuple[str, str] | None:
        """Wait for it to end; None, or its status and the last lines of its log."""
        status = self._process.wait()
        if not status:
            return None
        with self._log.open(encoding="utf-8", errors="replace") as log:
            lines = deque((line.rstrip() for line in log if line.strip()), maxlen=SHOWN_LINES)
        return f"status {status}", "\n".join([*(f"    {line}" for line in lines), f"  more in {self._log}"])

    def stop(self) -> None:
        """Ask the whole group to end, if it has not."""
        self._signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for it to end, and kill what does not in time."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def devices() -> list[str]:
    """The CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def environment(slot: int, slots: int, pinned_to: Sequence[str]) -> dict[str, str]:
    """Variables of a job: its own device, or on the CPU one thread, unless `OMP_NUM_THREADS` says otherwise.

    Args:
        slot: 0 to slots - 1.
        slots: How many jobs run side by side.
        pinned_to: Devices that the slots take in turn; empty: none is chosen.
    """
    variables = dict(os.environ)
    if pinned_to:
        variables["CUDA_VISIBLE_DEVICES"] = pinned_to[slot % len(pinned_to)]
    elif slots > 1:
        variables.setdefault("OMP_NUM_THREADS", "1")
    return variables


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Within it, SIGTERM is what Ctrl-C is: a KeyboardInterrupt, so that children are stopped."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
