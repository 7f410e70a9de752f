"""The loss of a training watched: one that is no number ends it, and no checkpoint is written then; a jump is noted.

What each forward pass came to stays on the device until a log entry, where the Trainer waits for it anyway; so the rows
of the very pass that went wrong can be named, and no step waits.
"""

import logging
import math
import statistics
from collections import Counter, deque
from collections.abc import Collection, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object, reduce
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from voco_llama.data.records import name_record
from voco_llama.errors import SettingsError
from voco_llama.sharding.live import held
from voco_llama.training.records_log import RecordsLog
from voco_llama.training.run_files import ANOMALIES_FILE, note_anomaly

logger = logging.getLogger(__name__)

WINDOW, FEWEST = 100, 20
"""Logged losses that a new one is compared with: at most, and at least."""
DEVIATIONS = 6
NORMAL = 1.4826
"""Times the median distance to the median: the standard deviation, of a normal distribution."""
LEAST_DEVIATION = 0.02
"""Of the middle loss: on a curve that is nearly flat anything else would be a jump."""
SHOWN = 3
"""Rows that a line names; all of them stand in the anomaly."""
ADVICE = "lower trainer.learning_rate, or train in bf16 or float32 instead of fp16"

Pass = tuple[int, float, tuple[tuple[int, int], ...]]
"""A forward pass of a process: steps done before it, its share of the step's loss, its rows as `Origins` has them."""


class LossWatch(TrainerCallback):
    """Looks at the loss and the norm of the gradient at each log entry, and at the weights before each checkpoint.

    Args:
        run: Folder of the run.
        records: Says which rows a pass has; None: they are not named.
    """

    def __init__(self, run: Path, records: RecordsLog | None) -> None:
        self.run, self.records = run, records
        self._passes: list[tuple[int, Tensor, tuple[tuple[int, int], ...]]] = []
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._jumped, self._is_first = False, True

    def add(self, step: int, loss: Tensor) -> None:
        """Note a forward pass of this process, made after so many steps."""
        number = sum(before == step for before, *_ in self._passes)
        batches = [] if self.records is None else self.records.batches
        self._passes.append((step, loss, batches[number].rows if number < len(batches) else ()))

    def check(self, step: int, logs: dict[str, float], may_skip: bool) -> None:
        """Look at a log entry; every process has the same.

        Args:
            step: Steps done.
            logs: The entry.
            may_skip: Gradients that are too large are no fault, for such a step is not made (fp16).

        Raises:
            SettingsError: The loss, or the norm of the gradient, is no number.
        """
        loss, norm = logs["loss"], logs.get("grad_norm", 0.0)
        if not math.isfinite(loss):
            self._stop(step, f"the loss is {loss} at step {step}")
        if not math.isfinite(norm) and not may_skip:
            self._stop(step, f"the norm of the gradient is {norm} at step {step}")
        jumps = is_jump(loss, self._losses)
        if jumps and not self._jumped:
            self._note_jump(step, loss)
        self._jumped = jumps
        self._losses.append(loss)
        self._passes.clear()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._is_first = args.process_index == 0
        self._losses.extend(entry["loss"] for entry in state.log_history if "loss" in entry)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            self._check_weights(model, state.global_step, args.device)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        if control.should_save:
            self._check_weights(model, state.global_step, args.device)

    def _check_weights(self, model: nn.Module, step: int, device: torch.device) -> None:
        """By their largest element; every process looks at what it holds."""
        trained = [held(parameter) for parameter in model.parameters() if parameter.requires_grad]
        largest = nn.utils.get_total_norm([piece for piece in trained if piece.numel()], math.inf)
        bad = reduce((~largest.isfinite()).float().to(device), "sum")
        if bad.item():
            self._stop(step, f"weights are no numbers any more after step {step}")

    def _stop(self, step: int, what: str) -> NoReturn:
        passes = self._all_passes()
        bad = [one for one in passes if not math.isfinite(one[1])]
        first = min((at for at, *_ in bad), default=None)
        named = self._names(bad or passes, first)
        where = f", {'first on' if bad else 'by one of'} {_shortened(named)}" if named else ""
        if self._is_first:
            note_anomaly(self.run, "nan", step, what, records=named)
        raise SettingsError(f"{what}{where}: {ADVICE}; the checkpoint from before is kept")

    def _note_jump(self, step: int, loss: float) -> None:
        passes, of_step = self._all_passes(), Counter()
        for at, value, _ in passes:
            of_step[at] += value
        highest, _ = max(of_step.items(), key=itemgetter(1), default=(None, 0))
        named = self._names(passes, highest)
        text = f"the loss jumps to {loss:.4f} at step {step}, from {statistics.median(self._losses):.4f}"
        if self._is_first:
            logger.warning("%s%s", text, f", highest on {_shortened(named)}" if named else "")
            note_anomaly(self.run, "spike", step, text, records=named)

    def _all_passes(self) -> list[Pass]:
        """Of all processes, since the last log entry."""
        losses = torch.stack([loss for _, loss, _ in self._passes]).tolist() if self._passes else []
        return gather_object([(at, value, rows) for (at, _, rows), value in zip(self._passes, losses, strict=True)])

    def _names(self, passes: Iterable[Pass], step: int | None) -> list[str]:
        """The rows of a step, or of all, as errors of data name them."""
        rows = [row for at, _, rows in passes if step in (None, at) for row in rows]
        mixture = self.records and self.records.mixture
        return [name_record(mixture.readers[mixture.origin(entry)[0]].file, record) for entry, record in rows]


def is_jump(loss: float, before: Collection[float]) -> bool:
    """Whether a loss is far above those before it, but the twentieth of them that were highest.

    Neither those, which may be jumps, nor batches of two kinds with a loss each hide what is one, or make one.
    """
    if len(before) < FEWEST:
        return False
    middle, high = statistics.median(before), statistics.quantiles(before, n=20)[-1]
    deviation = NORMAL * statistics.median(abs(value - middle) for value in before)
    return loss > high + DEVIATIONS * max(deviation, LEAST_DEVIATION * abs(middle))


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more ({ANOMALIES_FILE} names them)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
