"""Ctrl-C, SIGTERM and SIGUSR1 in a training: a checkpoint is written at the end of the step, and only then it ends.

All processes of a training must end at the same step, and a signal may reach one of them or all: they agree after each
step. Schedulers and launchers send a signal more than once, so only a second Ctrl-C by hand leaves at once.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from voco_llama.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGUSR1 is what Slurm can be told to send some time before it takes a job away."""
SAME_SECONDS = 1.0
"""A launcher hands on the Ctrl-C that reached its processes already, so within this time it is the same."""
GOES_ON = "the same command again goes on"


class Interrupts(TrainerCallback):
    """A context within which a signal ends a training: at once, or while the Trainer takes steps, after the step.

    Attributes:
        takes_steps: Whether the Trainer does; to be set by who calls it.
    """

    def __init__(self) -> None:
        self.takes_steps = False
        self._number: int | None = None
        self._ends = False
        self._noted = 0.0
        self._process = os.getpid()
        self._group: torch.distributed.ProcessGroup | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data worker; its process decides
            return
        name = signal.Signals(number).name
        if not self.takes_steps:
            raise Interrupted(number, f"{name}: {GOES_ON} from what is finished and saved")
        if self._number is None:
            self._number, self._noted = number, time.monotonic()
            self._say(f"{name}: this ends after the step, with a checkpoint; Ctrl-C again leaves at once\n")
        elif number == signal.SIGINT and time.monotonic() - self._noted > SAME_SECONDS:
            raise Interrupted(number, f"{name} again: {GOES_ON} from the last checkpoint before")

    def _say(self, line: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            os.write(2, line.encode())  # the stream may be in the middle of a write

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if args.world_size > 1 and self._group is None:  # of the hosts, so that no step waits for its device
            self._group = torch.distributed.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            number = torch.tensor(self._number or 0)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            self._number = int(number) or None
        if self._number is not None:
            self._ends = True
            args.save_only_model = False  # nothing could go on from weights alone
            control.should_log = control.should_save = control.should_training_stop = True

    def check(self, checkpoint: Path) -> None:
        """After the Trainer's steps; `checkpoint` is what it wrote last if it was interrupted.

        Raises:
            Interrupted: It was.
        """
        self.takes_steps = False
        if self._number is not None:
            name = signal.Signals(self._number).name
            written = f"{checkpoint} was written, and {GOES_ON} from it"
            late = f"{GOES_ON} from what is finished and saved"  # it came after the last step
            text = written if self._ends else late
            raise Interrupted(self._number, f"{name}: {text}", together=self._ends)


def outlives_one_sigterm(loader: DataLoader) -> DataLoader:
    """The same loader, whose workers live on after signals that schedulers send to all processes at once.

    A second SIGTERM, as the loader itself sends to a worker that hangs, ends them.
    """
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper
    inner.worker_init_fn = functools.partial(_begin_worker, inner.worker_init_fn)
    return loader


def _begin_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if begin is not None:
        begin(worker)
