"""A training watched by a thread of each process: one that is gone, or a step that does not end, ends the others too.

The threads meet every second in a collective of their own, over the hosts, so that a process that is gone is missed
within seconds also where the others wait for its device. Who is left writes all its stacks to its log and ends in the
status of `LostError`; what a collective of the training itself says of it, or a loader of its worker, is one line too.
"""

import faulthandler
import multiprocessing
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from voco_llama.errors import LostError, one_line
from voco_llama.text import duration
from voco_llama.training.batch import is_first_process
from voco_llama.training.run_files import note_anomaly, note_end
from voco_llama.training.run_logs import process_file

SECONDS = 1.0
"""Between two looks."""
GRACE = 10.0
"""Seconds that a process has to end by itself once another is gone, with an error of its own that says more."""
GOES_ON = "the same command goes on from the last whole checkpoint"

_LOST = re.compile("Connection (closed|reset) by peer|Broken pipe|Timed out waiting|Connection refused")
"""How gloo says it."""
_WORKER = re.compile(r"DataLoader worker \(pid")


class Watch(TrainerCallback):
    """A context within which a training is watched, from `start` on; a callback behind those that decide to save.

    Args:
        run: Folder of the run.
        stall_limit: Seconds that may pass between the ends of two steps, the time of saving not counted, nor the first
            step, which compiles; None: any.
    """

    def __init__(self, run: Path, stall_limit: float | None) -> None:
        self.run, self.stall_limit = run, stall_limit
        self._step = 0
        self._last: float | None = None
        self._ends, self._fails = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._group: torch.distributed.ProcessGroup | None = None

    def __enter__(self) -> "Watch":
        return self

    def start(self, processes: int) -> None:
        """Begin, when the processes are joined, so many: from here on none waits for one that is gone."""
        if processes > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if self._group is not None or self.stall_limit is not None:
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._last = None
        self._ends.set()
        if error is not None:
            self._fails.set()
        if self._thread is not None:
            self._thread.join()
        lost = None if error is None else self._lost_by(error)
        if lost is not None:
            self._write_stacks(error)
            note_anomaly(self.run, lost[0], self._step, lost[1])
            raise LostError(lost[1]) from error

    def _lost_by(self, error: BaseException) -> tuple[str, str] | None:
        """The kind of anomaly and the line, if an exception came of a process that is gone."""
        for cause in _causes(error):
            if _WORKER.search(str(cause)):
                return "worker", (
                    f"a process that loads data is gone ({one_line(cause)}): {GOES_ON}; if memory ran out (dmesg says),"
                    " set fewer trainer.dataloader_num_workers, and after a bus error make /dev/shm larger"
                )
            if isinstance(cause, torch.distributed.DistError) or _LOST.search(str(cause)):
                return "lost", f"another process of the training is gone ({one_line(cause, 120)}): {GOES_ON}"
        return None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step = state.global_step
        self._last = None if control.should_save else time.monotonic()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_save:
            self._last = None

    def on_save(self, *_: Any, **__: Any) -> None:
        self._last = time.monotonic()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._last = None

    def _look(self) -> None:
        """What the thread does until all processes end."""
        while self._group is None:
            self._check_stall()
            if self._ends.wait(SECONDS):
                return
        try:
            while not self._all_end():
                self._ends.wait(SECONDS)
        except RuntimeError as error:
            if not self._fails.wait(GRACE):
                kind, line = self._lost_by(error) or ("lost", one_line(error))
                self._leave(kind, line)

    def _all_end(self) -> bool:
        """Meet the other processes; whether all of them end, or this one does by an error."""
        ends = torch.tensor(int(self._ends.is_set()))
        work = torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MIN, self._group, async_op=True)
        while not work.is_completed():
            self._check_stall()
            if self._fails.wait(SECONDS / 10):
                return True
        work.wait()
        return bool(ends)

    def _check_stall(self) -> None:
        last = self._last
        if last is not None and self.stall_limit is not None and time.monotonic() - last > self.stall_limit:
            self._leave(
                "stall",
                f"no step has ended for {duration(self.stall_limit)} (stall_limit) since step {self._step}: {GOES_ON};"
                f" {process_file(self.run).parent} has what each process was at",
            )

    def _leave(self, kind: str, line: str) -> NoReturn:
        """End this process from its thread; its main one may stand in a library, where no exception reaches it."""
        self._write_stacks()
        note_anomaly(self.run, kind, self._step, line)
        if is_first_process():
            note_end(self.run, LostError.status, line)
        os.write(2, f"error: {line}\n".encode())
        time.sleep(2 * SECONDS)  # others see the same meanwhile, not that this one is gone
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(LostError.status)

    def _write_stacks(self, error: BaseException | None = None) -> None:
        with process_file(self.run).open("a", encoding="utf-8") as log:
            if error is not None:
                traceback.print_exception(error, file=log)
            log.write(f"stacks of process {os.getpid()} after step {self._step}:\n")
            log.flush()
            faulthandler.dump_traceback(log, all_threads=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
