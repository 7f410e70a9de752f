"""How a global batch is divided: over processes, and over the passes that one optimizer step accumulates."""

import math
import os
from dataclasses import dataclass
from typing import Any

from voco_llama.errors import DataError, SettingsError
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


def is_first_process() -> bool:
    """Of torchrun's, which writes what only one may."""
    return os.environ.get("RANK", "0") == "0"


def num_processes(settings: TrainSettings) -> int:
    """Of torchrun, else what the settings plan for (`hardware.num_processes`), else 1."""
    return world_size() or settings.hardware.num_processes or 1


def rows_of_a_pass(settings: TrainSettings) -> int:
    """Rows of one forward pass of one process.

    Raises:
        SettingsError: They are no positive whole number, or would take blocks of `data.share_media` rows apart.
    """
    rows = settings.trainer.get("per_device_train_batch_size", DEFAULT_ROWS)
    if not isinstance(rows, int) or rows < 1:
        raise SettingsError(f"trainer.per_device_train_batch_size is {rows}: give a whole number from 1 on")
    share = settings.data.share_media
    if share > 1 and rows % share:
        raise SettingsError(
            f"trainer.per_device_train_batch_size is {rows}, which data.share_media={share} does not divide: rows about"
            " one image come into one forward pass; change one of the two"
        )
    return rows


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step.

    Attributes:
        processes: Among which they are divided.
        rows: Of one forward pass of one process.
        accumulation: Forward passes of each process.
        drop_last: Whether the last rows of an epoch are left out if they fill no forward pass of all processes.
    """

    processes: int
    rows: int
    accumulation: int = 1
    drop_last: bool = False

    @classmethod
    def of(cls, settings: TrainSettings, processes: int | None = None) -> "GlobalBatch":
        """That of a training over the processes that are there; None: over those of `num_processes`.

        Raises:
            SettingsError: As `rows_of_a_pass`, or the global batch cannot be divided.
        """
        trainer, processes = settings.trainer, num_processes(settings) if processes is None else processes
        rows = rows_of_a_pass(settings)
        accumulation: Any = trainer.get("gradient_accumulation_steps", 1)
        if settings.global_batch_size is not None:
            accumulation, rest = divmod(settings.global_batch_size, processes * rows)
            if rest or not accumulation:
                share, odd = divmod(settings.global_batch_size, processes)
                one = settings.data.share_media
                fitting = next((n for n in range(min(rows, share) // one * one, 0, -one) if share % n == 0), one)
                advice = f"set trainer.per_device_train_batch_size={fitting}"
                if odd:
                    advice = f"use {math.gcd(settings.global_batch_size, processes)} processes"
                raise SettingsError(
                    f"global_batch_size is {settings.global_batch_size}, which {processes} processes of {rows} rows do"
                    f" not divide: {advice}, or set global_batch_size to a multiple of {processes * rows} and find the"
                    " learning rate anew"
                )
        return cls(processes, rows, accumulation, bool(trainer.get("dataloader_drop_last")))

    @property
    def a_pass(self) -> int:
        """Rows of one forward pass of all processes together."""
        return self.processes * self.rows

    @property
    def size(self) -> int:
        """Rows of an optimizer step."""
        return self.a_pass * self.accumulation

    def first_row(self, number: int, process: int) -> int:
        """Place in the global batch of the first row that a process sees in the `number`-th pass of a step, from 0."""
        return (number * self.processes + process) * self.rows

    def steps_an_epoch(self, records: int) -> int:
        """Optimizer steps over so many records, as the Trainer counts them.

        Raises:
            DataError: There is not even one batch.
        """
        return math.ceil(self.rows_an_epoch(records) / self.size)

    def rows_an_epoch(self, records: int) -> int:
        """Rows that an epoch over so many records shows: passes are whole, by dropping the last or by repeating some.

        Raises:
            DataError: There is not even one batch.
        """
        self.check_enough(records)
        return self.a_pass * (records // self.a_pass if self.drop_last else math.ceil(records / self.a_pass))

    def check_enough(self, records: int) -> None:
        """Refuse a data set that fills no batch.

        Raises:
            DataError: It says how many records are needed.
        """
        needed = self.a_pass if self.drop_last else 1
        if records < needed:
            raise DataError(
                f"the data set has {records} records, a batch {needed}: lower trainer.per_device_train_batch_size or"
                " set trainer.dataloader_drop_last=false"
            )

    def __str__(self) -> str:
        return f"{self.size} rows = {self.processes} processes x {self.rows} rows x {self.accumulation} accumulated"
