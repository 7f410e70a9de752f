"""Processes: the lock on a folder, a job in a process of its own, a training under a launcher.

A folder is worked in by one process at a time. The lock is the operating system's (`flock`), so that it ends with the
process that holds it, however that ends; the file's text, the process id, is for people.
"""

import contextlib
import fcntl
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
        SettingsError: Another process holds it, or it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(f"{file.parent}: cannot be written ({error.strerror}): name another folder") from error
    with lock as opened:
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


def launch(arguments: list[str]) -> None:
    """Run a training's processes, which write where this one does.

    Raises:
        LaunchError: They failed.
    """
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
    """`voco-llama sweep <overrides> job=<name>`, at the head of a process group, its output appended to a log."""

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
    """Variables of a job: one of the devices `pinned_to`, which the slots take in turn.

    Without devices, jobs side by side get one thread each, unless `OMP_NUM_THREADS` says otherwise.
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
