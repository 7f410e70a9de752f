"""What each process of a distributed test does: a command of the command line, as torchrun would start it.

A training writes down what the Trainer wrapped the model in, and can die at a given step, or have something happen to
one process at the step that a variable of `HAPPENS` names. The first process dies while its
thread writes the checkpoint of the step `WRITER_DIES_AT`.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from scripts.forked import become
from voco_llama import cli
from voco_llama.sharding import weights_are_divided
from voco_llama.training import run
from voco_llama.training.manifest import Manifest
from voco_llama.training.trainer import VoCoTrainer

KILLED = 17
"""Exit status of a process that dies in the midst of a training."""


def hang() -> None:
    time.sleep(1000)


HAPPENS = {
    "SIGNAL_AT": (1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "KILL_AT": (1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "HANG_AT": (1, hang),
    "FIRST_HANGS_AT": (0, hang),
}
"""By variable the process, and what happens to it."""


class WatchedTrainer(VoCoTrainer):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if os.environ.get("COUNT_BYTES"):
            Path(self.args.output_dir, f"bytes_{self.args.process_index}.json").write_text(str(held_bytes()))
            os._exit(0)
        if str(self.state.global_step) == os.environ["KILL_AT_STEP"]:
            os._exit(KILLED)
        for name, (process, happens) in HAPPENS.items():
            if (self.args.process_index, str(self.state.global_step)) == (process, os.environ.get(name)):
                happens()
        return super().training_step(*args, **kwargs)

    def _finish(self, left: list[Callable[[], None]], manifest: Manifest, *times: float) -> None:
        if str(manifest.step) == os.environ.get("WRITER_DIES_AT") and self.args.should_save:
            left[0]()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._finish(left, manifest, *times)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        engine = self.model_wrapped
        stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None
        seen = {"engine": type(engine).__name__, "zero_stage": stage, "processes": self.args.world_size}
        (Path(self.args.output_dir) / f"engine_{self.args.process_index}.json").write_text(json.dumps(seen))
        teacher = getattr(getattr(self.scheduled_loss, "teacher", None), "model", None)
        if teacher is not None:
            trains = any(parameter.requires_grad for parameter in teacher.parameters())
            seen = {"engine": type(teacher).__name__, "divided": weights_are_divided(teacher), "trains": trains}
            (Path(self.args.output_dir) / f"teacher_{self.args.process_index}.json").write_text(json.dumps(seen))
        return output


def held_bytes() -> int:
    """Of all tensors of this process, each storage once."""
    gc.collect()
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    storages = (tensor.untyped_storage() for tensor in tensors if type(tensor) is not DTensor and not tensor.is_meta)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def work(environment: dict[str, str], log: Path, command: list[str]) -> None:
    """Ends the process with the command's exit status; both outputs go to the log."""
    become(environment, log)
    run.VoCoTrainer = WatchedTrainer
    sys.exit(cli.main(command))
