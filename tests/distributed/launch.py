"""Starting the processes of a distributed test, and reading what they leave.

The imports cost 10 s a process, the work 2 s. So `launch` forks its processes from a server that has imported
everything and done nothing; what torchrun itself adds is tested with `torchrun`.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.distributed.worker import KILLED, work

ROOT = Path(__file__).parents[2]
STEPS = 8
TIME_LIMIT = 240
"""Seconds after which processes are taken to hang, and ended."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.distributed.preloaded"])
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Ended:
    """Exit statuses by rank, negative for a signal (SIGKILL where another process failed first), and the outputs."""

    statuses: list[int]
    output: str

    def check(self) -> None:
        assert set(self.statuses) == {0}, f"{self.statuses}\n{self.output[-4000:]}"


def launch(processes: int, command: list[str], kill_at: int = -1, ends_all: bool = True, **variables: str) -> Ended:
    """Run a command of ours in so many processes; with `ends_all`, as under torchrun, the first that fails ends all."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    with TemporaryDirectory() as folder:
        return _launch([variables | rank for rank in _ranks(processes)], command, kill_at, ends_all, Path(folder))


def _launch(
    environments: list[dict[str, str]], command: list[str], kill_at: int, ends_all: bool, folder: Path
) -> Ended:
    files = [folder / f"{rank}.log" for rank in range(len(environments))]
    workers = [
        FORKS.Process(target=work, args=(environment, file, command, kill_at))
        for environment, file in zip(environments, files, strict=True)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + TIME_LIMIT
    running = {worker.sentinel: worker for worker in workers}
    try:
        while running and (ended := connection.wait(running, max(0, deadline - time.monotonic()))):
            failed = [_status(running.pop(sentinel)) for sentinel in ended]
            if ends_all and any(failed):
                break
    finally:
        for worker in running.values():
            worker.kill()
    statuses = [_status(worker) for worker in workers]
    output = "".join(file.read_text() for file in files)
    assert time.monotonic() < deadline, f"not done after {TIME_LIMIT} s\n{output[-4000:]}"
    return Ended(statuses, output)


def _status(worker: multiprocessing.Process) -> int:
    worker.join()
    return worker.exitcode


def _ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun sets, by rank; nothing for one process."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [same | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [{name: str(value) for name, value in environment.items()} for environment in ranks]


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
