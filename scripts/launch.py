"""Runs a command in several processes, on one machine or on each of several; says first how the global batch divides.

It is torchrun's agent and rendezvous with three things changed. torchrun's own command ends in status 1 whatever a
process ended with: this one ends in the status of the process that failed first, 128 + N if a signal N killed it.
torchrun answers SIGTERM and SIGINT by ending its processes, with SIGKILL after 30 s, which is too short for a large
checkpoint, and dies of SIGUSR1 and leaves them alone: this one hands these signals on, and waits. And it begins again,
with `--max-restarts`, where a process was lost, not where it ended as it was asked to or for a user's mistake.
"""

import argparse
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from torch import distributed
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from voco_llama.cli import COMMANDS
from voco_llama.command_line import parse
from voco_llama.config_files import using_folder
from voco_llama.errors import VoCoError, one_line, own_line
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.checks import check_settings

PROGRAM = ("-m", "voco_llama.cli")
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
MISTAKE, LOST = 2, os.EX_TEMPFAIL
ENDED = (MISTAKE, *(128 + number for number in HANDED_ON))
"""Statuses that a new start would not better."""

LOOKS_EVERY = 0.1
"""Seconds between two looks at the processes."""
OTHERS_NOTICE = 3.0
"""Seconds for which a failed launcher stays, since the other machines' meet at it: their processes end with its own."""
OTHERS_FINISH = 3600.0
"""Seconds that a launcher waits for the other machines' where its own processes are done: one writes the model."""

logger = logging.getLogger("voco_llama.launch")


class Agent(LocalElasticAgent):
    """See the module."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        started = super()._start_workers(worker_group)
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)
        return started

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._remaining_restarts = 0
        for process in self._pcontext.pids().values():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and status_of(result) in ENDED:
            self._remaining_restarts = 0
        return result


def status_of(result: RunResult) -> int:
    """Exit status of the process that failed first; 0 if none did."""
    if not result.is_failed():
        return 0
    status = min(result.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return status if status >= 0 else 128 - status


def run(options: argparse.Namespace) -> int:
    """Run the processes of this machine to their end; returns the exit status."""
    if options.processes > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun: else each takes all cores
    nodes = options.nodes
    meeting = RendezvousParameters("c10d", options.rendezvous or "localhost:0", options.id, nodes, nodes)
    spec = WorkerSpec(
        role="voco-llama",
        local_world_size=options.processes,
        entrypoint=sys.executable,
        args=(*PROGRAM, *options.command),
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=options.max_restarts,
        monitor_interval=LOOKS_EVERY,
    )
    try:
        status = status_of(Agent(spec, DefaultLogsSpecs(), exit_barrier_timeout=OTHERS_FINISH).run())
    except SignalException as error:  # SIGHUP, SIGQUIT
        return 128 + error.sigval
    except (RendezvousError, distributed.DistError) as error:
        why = one_line(error)
        sys.stderr.write(f"error: the other machines' launchers are gone or were not met ({why}): start all again\n")
        return LOST
    if status and nodes > 1:
        time.sleep(OTHERS_NOTICE)
    spec.rdzv_handler.shutdown()
    return status


def training(command: Sequence[str]) -> TrainSettings | None:
    """The settings of a training; None of any other command.

    Raises:
        VoCoError: They are mistaken.
    """
    words = parse(list(command), COMMANDS)
    if words.command != "train":
        return None
    with using_folder(words.folder):
        return COMMANDS["train"].compose_typed(words.overrides)


def global_batch(command: Sequence[str], processes: int) -> str | None:
    """How a training's global batch is divided over all processes; None of any other command.

    Raises:
        VoCoError: The settings are mistaken, or the batch cannot be divided.
    """
    settings = training(command)
    return None if settings is None else str(GlobalBatch.of(settings, processes))


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options before the command."""
    parser = argparse.ArgumentParser("scripts/launch", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=os.environ.get("VOCO_NODES", 1), help="machines (VOCO_NODES); 1")
    where = os.environ.get("VOCO_RENDEZVOUS")
    parser.add_argument("--rendezvous", metavar="HOST:PORT", default=where, help="one of them (VOCO_RENDEZVOUS)")
    name = "of the meeting, where several are held there"
    parser.add_argument("--id", default=os.environ.get("VOCO_RENDEZVOUS_ID", "voco-llama"), help=name)
    restarts = "new starts on this command where a process is lost (VOCO_MAX_RESTARTS); 0"
    parser.add_argument("--max-restarts", type=int, default=os.environ.get("VOCO_MAX_RESTARTS", 0), help=restarts)
    batch = "say how the global batch is divided, and on the output the folder of the run; start nothing"
    parser.add_argument("--batch", action="store_true", help=batch)
    parser.add_argument("processes", type=int, help="on this machine: one for each GPU")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of voco-llama, with its settings")
    options = parser.parse_args(arguments)
    if not options.command or options.processes < 1 or options.nodes < 1:
        parser.error(
            "give a number of processes from 1 on, and a command, as in: scripts/launch 8 train experiment=voco_1"
        )
    if options.nodes > 1 and options.rendezvous is None:
        parser.error("several machines need --rendezvous HOST:PORT, the same on each: one of them, and a free port")
    if options.nodes == 1 and options.rendezvous is None:
        options.id = uuid.uuid4().hex
    return options


def main() -> int:
    """Returns the exit status."""
    options = read_options()
    processes = options.nodes * options.processes
    try:
        batch = global_batch(options.command, processes)
    except VoCoError as error:
        sys.stderr.write(f"error: {own_line(error)}\n")
        return MISTAKE
    sys.stderr.write(f"global batch: {batch}\n" if batch else f"{processes} processes\n")
    sys.stderr.flush()
    settings = training(options.command)
    if options.batch:
        sys.stdout.write("" if settings is None else f"{settings.output_dir}\n")
        return 0
    try:
        if settings is not None:
            check_settings(settings, paths=not settings.dry_run)  # once, before every process finds the same
        return run(options)
    except VoCoError as error:
        sys.stderr.write(f"error: {own_line(error)}\n")
        return MISTAKE
    except KeyboardInterrupt:  # before there are processes
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
