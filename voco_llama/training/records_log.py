"""Which rows each step trained on, as the rows themselves say it: written by every process, a line a step.

    {"start": 40, "process": 4711, "processes": 2, "epoch_rows": 640, "step_rows": 16}
    {"step": 41, "epoch": 0, "records": [17, 3, ...]}

A record is an entry of the mixture; where another record of its source stood in for one that cannot be used, `stood_in`
says which. `voco_llama.training.seen` reads the files.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from voco_llama.data.collate import Origins
from voco_llama.data.mixture import Mixture
from voco_llama.files import append_line
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.seen import records_file


class RecordsLog(TrainerCallback):
    """Writes the log of this process below the folder of a run.

    Attributes:
        batches: Of the step at hand the rows of each forward pass.
    """

    def __init__(self, run: Path, mixture: Mixture, batch: GlobalBatch, rows_an_epoch: int) -> None:
        self.run, self.mixture, self.batch, self.rows_an_epoch = run, mixture, batch, rows_an_epoch
        self.batches: list[Origins] = []
        self._file: TextIO | None = None
        self._epoch = 0

    def take(self, batches: Iterable[dict[str, Any]]) -> None:
        """Take what the batches of the next step say of themselves out of them."""
        self.batches = [batch.pop("origins") for batch in batches if "origins" in batch]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        start = {
            "start": state.global_step,
            "process": os.getpid(),
            "processes": args.world_size,
            "epoch_rows": self.rows_an_epoch,
            "step_rows": self.batch.size,
        }
        own = records_file(self.run, args.process_index)
        own.parent.mkdir(exist_ok=True)
        append_line(own, start)
        if args.process_index == 0:  # also for the processes that there were more of before
            for file in own.parent.glob(records_file(self.run, "*").name):
                if int(file.stem.rpartition("_")[2]) >= args.world_size:
                    append_line(file, start)
        self._file = own.open("a", encoding="utf-8", buffering=1)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._epoch = int(state.epoch or 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        rows = [row for batch in self.batches for row in batch.rows]
        line: dict[str, Any] = {
            "step": state.global_step,
            "epoch": self._epoch,
            "records": [entry for entry, _ in rows],
        }
        if stood_in := {entry: record for entry, record in rows if self.mixture.origin(entry)[1] != record}:
            line["stood_in"] = stood_in
        self._file.write(json.dumps(line) + "\n")
        self._keep(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        self._keep(control)

    def close(self) -> None:
        """No step follows."""
        if self._file is not None:
            self._file.close()

    def _keep(self, control: TrainerControl) -> None:
        """A checkpoint counts on the steps before it, also after a power failure."""
        if control.should_save:
            os.fsync(self._file.fileno())
