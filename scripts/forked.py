"""Processes of our commands, forked from a server that has imported what they need: a start costs 2 s, not 12.

The server has done nothing else, so that what a process does is what the command does that somebody types.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["scripts.preloaded"])
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Ranks:
    """Processes of one command, by rank, and the file that each writes both its outputs to."""

    workers: list[multiprocessing.Process]
    logs: list[Path]

    @property
    def running(self) -> list[multiprocessing.Process]:
        """Those that have not ended."""
        return [worker for worker in self.workers if worker.is_alive()]

    @property
    def statuses(self) -> list[int | None]:
        """Exit statuses, negative for a signal; None: it runs."""
        return [worker.exitcode for worker in self.workers]

    @property
    def output(self) -> str:
        """Of all of them."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)

    def wait(self, seconds: float, until_failure: bool = False) -> bool:
        """Whether all have ended within so many seconds, or one that failed."""
        deadline = time.monotonic() + seconds
        while running := self.running:
            if until_failure and any(self.statuses):
                return True
            if not connection.wait([worker.sentinel for worker in running], max(0.0, deadline - time.monotonic())):
                return False
        return True

    def send(self, number: signal.Signals, ranks: Sequence[int]) -> None:
        """A signal to those of these ranks that run."""
        for rank in ranks:
            if self.workers[rank].is_alive():
                os.kill(self.workers[rank].pid, number)

    def end(self) -> None:
        """Kill those that run."""
        for worker in self.running:
            worker.kill()
        for worker in self.workers:
            worker.join()


def start(
    processes: int,
    command: list[str],
    folder: Path,
    work: Callable[[Mapping[str, str], Path, list[str]], None] | None = None,
    **variables: str,
) -> Ranks:
    """Start a command of the command line in so many processes, with the variables that torchrun sets.

    Args:
        processes: One has no such variables.
        command: As somebody types it after `voco-llama`.
        folder: Of the files of outputs.
        work: In place of `run`.
        variables: Of the environment; `LARGEST_FILE` are bytes beyond which no file grows, as on a disk that is full.
    """
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ |= ENVIRONMENT
    forkserver.ensure_running()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{rank}.log" for rank in range(processes)]
    workers = [
        FORKS.Process(target=work or run, args=(variables | environment, log, command))
        for environment, log in zip(_ranks(processes), logs, strict=True)
    ]
    for worker in workers:
        worker.start()
    return Ranks(workers, logs)


def run(environment: Mapping[str, str], log: Path, command: list[str]) -> None:
    """What each process does: it ends with the command's exit status."""
    from voco_llama import cli

    become(environment, log)
    sys.exit(cli.main(command))


def become(environment: Mapping[str, str], log: Path) -> None:
    """Have this process's variables, and its outputs in a file."""
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if "LARGEST_FILE" in environment:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["LARGEST_FILE"]), resource.RLIM_INFINITY))


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
