"""How much of a training's time goes by waiting for data."""

import time
from collections.abc import Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class DataWait:
    """Measures the time between asking for a batch and getting it, against all time that passes.

    Args:
        device: That the model trains on; work that it still has to do counts as training, not as waiting.
    """

    def __init__(self, device: torch.device) -> None:
        self._waits_for_device = device.type != "cpu"
        self.start()

    def start(self) -> None:
        """Begin anew: what has passed until now does not count."""
        self._begun = self._last = time.perf_counter()
        self._waited = self._waited_before = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, the time for each measured."""
        while True:
            if self._waits_for_device:
                torch.accelerator.synchronize()  # else copying the batch waits for the step before
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield batch

    def take(self) -> float:
        """The share since the last call, from 0 to 1."""
        now = time.perf_counter()
        share = _share(self._waited - self._waited_before, now - self._last)
        self._last, self._waited_before = now, self._waited
        return share

    @property
    def share(self) -> float:
        """The share since `start`, from 0 to 1."""
        return _share(self._waited, time.perf_counter() - self._begun)


def _share(waited: float, passed: float) -> float:
    return waited / passed if passed else 0.0
