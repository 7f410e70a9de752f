"""Which losses a step minimizes, with which weights, and what of them is logged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voco_llama.model.losses import Objective
from voco_llama.model.voco_llama import VoCoLlama, VoCoOutput
from voco_llama.settings import LOSSES, LossSettings
from voco_llama.training.teachers.teacher import Teacher

LOGGED = tuple(f"loss_{name}" for name in LOSSES)
"""What a log line says beside `loss`; each is what it would be with weight 1."""


@dataclass(frozen=True)
class ScheduledLoss:
    """The weighted losses of a training; there is no teacher without a KL term."""

    settings: LossSettings
    teacher: Teacher | None

    def weights(self, done: float) -> dict[str, float]:
        """Weight of each of `LOSSES` when `done`, from 0 to 1, of the training is done."""
        points = self.settings.schedule
        if points is None:
            return {name: getattr(self.settings, name) for name in LOSSES}
        at = [point.at for point in points]
        return {name: float(np.interp(done, at, [getattr(point, name) for point in points])) for name in LOSSES}

    def teacher_num_voco(self, done: float) -> int | None:
        """VoCo tokens that the teacher reads when `done` of the training is done; None: it sees the image."""
        points = self.settings.schedule or []
        past = [point for point in points if point.at <= done] or points[:1]
        return past[-1].teacher_num_voco if past else None

    def objective(self, done: float, student: VoCoLlama, batch: dict[str, Tensor]) -> Objective:
        """The objective when `done` of the training is done; the teacher reads the batch, unless its term is 0 now.

        The student is unwrapped; from what it will read, entries that are the teacher's alone are taken out.
        """
        weights = self.weights(done)
        teacher = None
        if self.teacher is not None:
            own = {name: batch.pop(name) for name in self.teacher.batch_entries}
            if weights["kl"]:
                teacher = self.teacher.read(student, {**batch, **own}, self.teacher_num_voco(done))
        return Objective(
            **weights, temperature=self.settings.temperature, chunk_size=self.settings.chunk_size, teacher=teacher
        )


class LossLog:
    """Means of the single losses since the last log line, over steps and processes, without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._first_step: int | None = None

    def add(self, step: int, outputs: VoCoOutput, scale: int) -> None:
        """Add one forward pass of the student, after `step` optimizer steps.

        The Trainer multiplied the loss by `scale`, so that its mean over processes is that of the batch.
        """
        if self._first_step is None:
            self._first_step = step
        for name in LOGGED:
            if outputs.get(name) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + outputs[name] * scale

    def take(self, step: int, mean_over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means up to `step` steps done, and begin anew; every process takes part."""
        if not self._sums:
            return {}
        steps = max(step - self._first_step, 1)
        means = mean_over_processes(torch.stack(list(self._sums.values())) / steps).tolist()
        logged = dict(zip(self._sums, means, strict=True))
        self._sums, self._first_step = {}, None
        return logged
