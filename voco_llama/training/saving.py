"""A Trainer whose checkpoints are written while it trains on.

Training stands still until weights and the optimizer's state are copied to the machine's memory; a thread writes the
copy, lists it with its hashes and gives it its name. One process or DDP: of the first process. FSDP: each process
writes its pieces of the optimizer's state, and the first one all weights, gathered, so that any checkpoint can be
loaded as a model. One checkpoint is written at a time: the next one, the end of a training, and a signal wait for it,
and its errors are raised there or before the next step.

DeepSpeed writes its state itself and at once, so for it only hashes and the name are left to the thread; likewise where
the machine's memory has no room for the copy.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from transformers import Trainer

from voco_llama.errors import Interrupted
from voco_llama.sharding.carry import fsdp_states
from voco_llama.sharding.states import OPTIMIZER_FILE, OPTIMIZER_FOLDER
from voco_llama.training.checkpoints import UNFINISHED, discard_unfinished, publish
from voco_llama.training.manifest import Manifest, Origin

logger = logging.getLogger(__name__)

SCHEDULER_FILE = "scheduler.pt"


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
        self._saved_dtype = getattr(getattr(self.model, "config", None), "dtype", None)  # saving changes it
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
        self.accelerator.wait_for_everyone()  # what starts processes ends all when one has left
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
            (run / UNFINISHED / f"checkpoint-{self.state.global_step}").mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if self.is_fsdp_enabled:
            _ = self._stager  # all processes decide together
        self._left, self._is_saving = [], True
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
        except Exception:
            discard_unfinished(run)  # a disk that is full needs the room
            raise
        finally:
            self._is_saving = False
        if is_writer or self._left:
            manifest = Manifest(self.state.global_step, self.origin, self._parameters())
            self.writer.begin(partial(self._finish, self._left, manifest, began, time.perf_counter()))

    def _parameters(self) -> tuple[tuple[str, ...], ...]:
        """Names by the optimizer's groups, where its own file has numbers."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return ()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return tuple(tuple(names[each] for each in group["params"]) for group in self.optimizer.param_groups)

    def _finish(self, left: list[Callable[[], None]], manifest: Manifest, began: float, went_on: float) -> None:
        """What the thread does: write what is left, and give the checkpoint its name."""
        run, name = Path(self.args.output_dir), f"checkpoint-{manifest.step}"
        try:
            for write in left:
                write()
            if not self.args.should_save:
                return
            publish(run, name, manifest, self.args.save_total_limit)
        except Exception:
            if self.args.should_save:  # else it may still be written
                discard_unfinished(run)
            raise
        seconds = (went_on - began, time.perf_counter() - went_on)
        logger.info("%s: training stood still for %.2f s; it was whole %.2f s later", name, *seconds)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own: all batches of a step; an error of the thread that writes ends the training here."""
        self.writer.check()
        return super().get_batch_samples(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.is_fsdp_enabled:  # gathered, in the first process; what trained is kept in float32
            is_alone, gathered = self.args.world_size == 1, state_dict or {}
            state_dict = {name: gathered.pop(name).to(self._saved_dtype, copy=is_alone) for name in list(gathered)}
        elif self._writes_later:
            state_dict = self._stager.stage({"model": self.model.state_dict()})["model"]
        self._do(partial(super()._save, output_dir, state_dict))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.is_deepspeed_enabled or not (self.is_fsdp_enabled or self.args.should_save):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp_states(self.model, self.optimizer) if self.is_fsdp_enabled else self.optimizer.state_dict()
        state = self._stager.stage({"optimizer": state})["optimizer"] if self._writes_later else state
        if self.is_fsdp_enabled:
            self._do(partial(_save_pieces, state, folder / OPTIMIZER_FOLDER, self._hosts))
        else:
            self._do(partial(torch.save, state, folder / OPTIMIZER_FILE))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_FILE)

    def _do(self, write: Callable[[], None]) -> None:
        """Write now, or leave it to the thread."""
        if self._writes_later:
            self._left.append(write)
        else:
            write()

    @property
    def _writes_later(self) -> bool:
        """Whether a checkpoint is being made, and its weights and states were copied to be written by the thread."""
        is_part = self.is_fsdp_enabled or (self.args.should_save and not self.is_deepspeed_enabled)
        return self._is_saving and is_part and self._stager is not None

    @cached_property
    def _hosts(self) -> torch.distributed.ProcessGroup:
        """The processes, apart from their devices: a thread may talk while the training does."""
        return torch.distributed.new_group(backend="gloo")

    @cached_property
    def _stager(self) -> DefaultStager | None:
        """Copies to the machine's memory, over the copy before; None: there is no room for it."""
        if self.is_fsdp_enabled:
            parts = [value for value in fsdp_states(self.model, self.optimizer).values() if isinstance(value, DTensor)]
            size = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * sum(part.to_local().nbytes for part in parts)
        else:
            leaves = tree_leaves([self.model.state_dict(), self.optimizer.state_dict()])
            size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        room = psutil.virtual_memory().available
        fits = torch.tensor(size <= room // 2)
        if self.is_fsdp_enabled and self.args.world_size > 1:
            torch.distributed.all_reduce(fits, torch.distributed.ReduceOp.MIN, group=self._hosts)
        if not fits:
            text = "training stands still for each checkpoint: a copy has %.1f GB, and %.1f are free"
            logger.info(text, size / 1e9, room / 1e9)
            return None
        return DefaultStager(StagingOptions(False, False, False, False))  # as in `dcp.async_save`: not pinned


def _save_pieces(state: dict[str, Any], folder: Path, processes: torch.distributed.ProcessGroup) -> None:
    """Every process writes its own.

    Raises:
        RuntimeError: One of them could not; PyTorch says it by what is no `Exception`.
    """
    try:
        dcp.save(state, checkpoint_id=folder, process_group=processes)
    except CheckpointException as error:
        raise RuntimeError(str(error)) from error
