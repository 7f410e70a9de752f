"""How a global batch is divided: over processes, and over the passes that one optimizer step accumulates."""

import os

from voco_llama.errors import SettingsError
from voco_llama.settings import TrainSettings

DEFAULT_ROWS = 8
"""Of `TrainingArguments.per_device_train_batch_size`."""


def world_size() -> int | None:
    """Processes that torchrun started; None without it."""
    text = os.environ.get("WORLD_SIZE")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise SettingsError(f"WORLD_SIZE is {text!r} in the environment: unset it, or start with torchrun")
    return int(text)


def rows_per_process(settings: TrainSettings) -> int:
    """Rows of one forward pass of one process.

    Raises:
        SettingsError: It is no positive whole number.
    """
    rows = settings.trainer.get("per_device_train_batch_size", DEFAULT_ROWS)
    if not isinstance(rows, int) or rows < 1:
        raise SettingsError(f"trainer.per_device_train_batch_size is {rows}: give a whole number from 1 on")
    return rows


def accumulation_steps(settings: TrainSettings, processes: int) -> int:
    """Forward passes of each process in one optimizer step.

    Raises:
        SettingsError: The global batch cannot be divided that way.
    """
    if settings.global_batch_size is None:
        return settings.trainer.get("gradient_accumulation_steps", 1)
    rows = rows_per_process(settings)
    steps, rest = divmod(settings.global_batch_size, processes * rows)
    if rest or not steps:
        raise SettingsError(
            f"global_batch_size is {settings.global_batch_size}, which {processes} processes of {rows} rows do not"
            " divide: change trainer.per_device_train_batch_size, or set global_batch_size to a multiple of"
            f" {processes * rows}"
        )
    return steps
