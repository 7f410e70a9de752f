"""Progress lines of a training, and what of its log is kept.

    step 40/700  loss 3.2140  lr 9.8e-04  12,300 text + 45,000 segment tokens/s  MFU 41 %  60 of 128 images  padding 3 %
    data 2 %  3m12s left

in one line. The names that the log has for these are those of `voco_llama.training.log_entries`.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from voco_llama.text import duration
from voco_llama.training.log_entries import SPEED, speed_in_words
from voco_llama.training.losses import LOGGED
from voco_llama.training.sampling import EpochSampler

logger = logging.getLogger(__name__)

MAX_LINES = 100
"""Progress lines of a run, about."""

FIRST_LINES = (1, 2, 5, 10)
"""Steps that have one each, if `logging_first_step` wants the first: a long run shows at once that it moves."""


class Progress(TrainerCallback):
    """Writes a limited number of lines.

    Args:
        order: Is told which epoch begins.
        measure_from: Is told, when training begins, how many steps were done before; what it measures are speeds.
    """

    def __init__(self, order: EpochSampler, measure_from: Callable[[int], None]) -> None:
        self.order, self.measure_from = order, measure_from

    def on_train_begin(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self.measure_from(state.global_step)
        self.started = time.perf_counter()
        self.first_step = self.last_line = state.global_step

    def on_epoch_begin(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        # The loop itself does not reach the sampler after a resume with several processes.
        self.order.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_first = args.logging_first_step and state.global_step in FIRST_LINES
        control.should_log |= is_first or state.global_step >= state.max_steps  # so that the loss curve has its end

    def on_log(self, args: Any, state: TrainerState, *rest: Any, logs: dict[str, float], **kwargs: Any) -> None:
        step = state.global_step
        is_due = step == state.max_steps or step in FIRST_LINES or step - self.last_line >= state.max_steps / MAX_LINES
        if not state.is_world_process_zero or "loss" not in logs or not is_due:
            return
        self.last_line = step
        seconds = time.perf_counter() - self.started
        parts = [f"step {step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
        parts += [f"{name} {logs[name]:.4f}" for name in LOGGED if name in logs]
        parts += [f"lr {logs['learning_rate']:.1e}", *speed_in_words(logs)]
        left = seconds / max(step - self.first_step, 1) * (state.max_steps - step)
        parts.append(f"{duration(left)} left" if step < state.max_steps else f"took {duration(seconds)}")
        logger.info("  ".join(parts))


def loss_curve(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the Trainer's log: step, losses (means since the entry before), learning rate, gradient norm, speed."""
    keys = ("step", "epoch", "loss", *LOGGED, "learning_rate", "grad_norm", *SPEED)
    return [{key: entry[key] for key in keys if key in entry} for entry in log_history if "loss" in entry]
