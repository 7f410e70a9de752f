"""A job as a process of its own: its log, its device, and its end together with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

SHOWN_LINES = 5
"""Of a failed job's log."""
STOP_SECONDS = 40
"""From the request to end to the kill; torchrun gives its own processes 30."""


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

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the whole group to end."""
        self._signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for it to end, and kill what does not in time."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        """The last lines of its log, and where that is."""
        with self._log.open(encoding="utf-8", errors="replace") as log:
            lines = deque((line.rstrip() for line in log if line.strip()), maxlen=SHOWN_LINES)
        return "\n".join([*(f"    {line}" for line in lines), f"  more in {self._log}"])

    def _signal(self, number: signal.Signals) -> None:
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

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
