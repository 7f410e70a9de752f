"""Starting the processes of a distributed test, and reading what they leave.

`launch` forks its processes (`scripts.forked`); what torchrun itself adds is tested with `torchrun`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.forked import ENVIRONMENT, start
from tests.distributed.worker import KILLED, work

STEPS = 8
TIME_LIMIT = 240
"""Seconds after which processes are taken to hang, and ended."""


@dataclass(frozen=True)
class Ended:
    """Exit statuses by rank, negative for a signal (SIGKILL where another process failed first), and the outputs."""

    statuses: list[int]
    output: str

    def check(self) -> None:
        assert set(self.statuses) == {0}, f"{self.statuses}\n{self.output[-4000:]}"


def launch(processes: int, command: list[str], kill_at: int = -1, ends_all: bool = True, **variables: str) -> Ended:
    """Run a command of ours in so many processes; with `ends_all`, as under torchrun, the first that fails ends all."""
    with TemporaryDirectory() as folder:
        ranks = start(processes, command, Path(folder), work, KILL_AT_STEP=str(kill_at), **variables)
        is_done = ranks.wait(TIME_LIMIT, until_failure=ends_all)
        ranks.end()
        assert is_done, f"not done after {TIME_LIMIT} s\n{ranks.output[-4000:]}"
        return Ended(ranks.statuses, ranks.output)


def torchrun(processes: int, command: list[str], **variables: str) -> subprocess.CompletedProcess:
    """Run a command of ours as README says, interpreters and all."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "voco_llama.cli", *command],
        env=os.environ | ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT,
    )


def run(processes: int, overrides: list[str]) -> None:
    """Train."""
    launch(processes, ["train", *overrides]).check()


def run_until_killed(processes: int, overrides: list[str], step: int) -> None:
    """Train; at this step every process dies by itself."""
    ended = launch(processes, ["train", *overrides], kill_at=step)
    assert KILLED in ended.statuses, f"{ended.statuses}\n{ended.output[-4000:]}"


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "result.json").read_text())["loss_curve"]]
