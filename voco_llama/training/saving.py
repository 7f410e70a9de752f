"""A Trainer whose checkpoints are written while it trains on.

Training stands still until weights and the optimizer's state are copied to the machine's memory; a thread of the first
process writes the copy, lists it with its hashes and gives it its name. One checkpoint is written at a time: the next
one, the end of a training, and a signal wait for it, and its errors are raised there or before the next step.

DeepSpeed writes its state itself, of all processes and at once, so for it only hashes and the name are left to the
thread; likewise where the machine's memory has no room for the copy.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.utils._pytree import tree_leaves
from transformers import Trainer

from voco_llama.errors import Interrupted
from voco_llama.training.checkpoints import UNFINISHED, discard_unfinished, publish
from voco_llama.training.manifest import Manifest, Origin

logger = logging.getLogger(__name__)

OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"


class Writer:
    """A thread that does one piece of work at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Start work; that before must be done."""
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised by `check`
            self._error = error

    def join(self) -> None:
        """Wait until it is done."""
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise what the work that is done ended with."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until it is done, and raise what it ended with."""
        self.join()
        self.check()


class SavingTrainer(Trainer):
    """See the module.

    Args:
        origin: What its checkpoints say of where they come from.
        kwargs: What `transformers.Trainer` takes.
    """

    def __init__(self, *, origin: Origin, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.origin = origin
        self.writer = Writer()
        self._is_saving = False
        self._left: list[Callable[[], None]] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; no checkpoint is half written when it ends, unless it was told to end at once."""
        try:
            output = super().train(*args, **kwargs)
        except Interrupted:
            raise
        except BaseException:
            self.writer.join()
            raise
        self.writer.wait()
        return output

    def _get_output_dir(self, *args: Any, **kwargs: Any) -> str:
        folder = super()._get_output_dir(*args, **kwargs)
        return str(Path(folder) / UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's own, written aside; it gets its name when every process has written its part."""
        began, run, is_writer = time.perf_counter(), Path(self.args.output_dir), self.args.should_save
        self.writer.wait()
        if is_writer:
            discard_unfinished(run)
        self.accelerator.wait_for_everyone()
        self._left, self._is_saving = [], True
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
        except Exception:
            discard_unfinished(run)  # a disk that is full needs the room
            raise
        finally:
            self._is_saving = False
        if is_writer:
            manifest = Manifest(self.state.global_step, self.origin)
            self.writer.begin(partial(self._finish, self._left, manifest, began, time.perf_counter()))

    def _finish(self, left: list[Callable[[], None]], manifest: Manifest, began: float, went_on: float) -> None:
        """What the thread does: write what is left, and give the checkpoint its name."""
        run, name = Path(self.args.output_dir), f"checkpoint-{manifest.step}"
        try:
            for write in left:
                write()
            publish(run, name, manifest, self.args.save_total_limit)
        except Exception:
            discard_unfinished(run)
            raise
        seconds = (went_on - began, time.perf_counter() - went_on)
        logger.info("%s: training stood still for %.2f s; it was whole %.2f s later", name, *seconds)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own: all batches of a step; an error of the thread that writes ends the training here."""
        self.writer.check()
        return super().get_batch_samples(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self._writes_later and state_dict is None:
            copied = self._stager.stage({"model": self.model.state_dict()})
            self._left.append(partial(super()._save, output_dir, copied["model"]))
        else:
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._writes_later:
            copied, folder = self._stager.stage({"optimizer": self.optimizer.state_dict()}), Path(output_dir)
            self._left.append(partial(torch.save, copied["optimizer"], folder / OPTIMIZER_FILE))
            self._left.append(partial(torch.save, self.lr_scheduler.state_dict(), folder / SCHEDULER_FILE))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    @property
    def _writes_later(self) -> bool:
        """Whether this process writes all of a checkpoint, and does so while it trains on."""
        is_divided = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self._is_saving and self.args.should_save and not is_divided and self._stager is not None

    @cached_property
    def _stager(self) -> DefaultStager | None:
        """Copies to the machine's memory, over the copy before; None: there is no room for it."""
        states = [self.model.state_dict(), self.optimizer.state_dict()]
        size = sum(leaf.nbytes for leaf in tree_leaves(states) if isinstance(leaf, torch.Tensor))
        room = psutil.virtual_memory().available
        if size > room // 2:
            logger.info(
                "training stands still for each checkpoint: a copy has %.1f GB, %.1f are free", size / 1e9, room / 1e9
            )
            return None
        return DefaultStager(StagingOptions(torch.cuda.is_available(), False, False, False))
