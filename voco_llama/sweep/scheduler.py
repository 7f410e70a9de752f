"""Tasks side by side: which starts when, what is said about each, and what is left running at the end (nothing).

How a task is started is given from outside, so that this knows nothing of training.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """Something to be done.

    Attributes:
        name: In the progress lines.
        needs: Name of the task that must have succeeded before; None, or that of a task not given: none.
        counts: Whether it is one of those that are counted and that the remaining time is estimated from.
    """

    name: str
    needs: str | None = None
    counts: bool = True


class Running(Protocol):
    """A task that was started."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def stop(self) -> None:
        """Ask it to end."""

    def wait(self) -> None:
        """Return when it has ended, within bounded time after `stop`."""

    def last_words(self) -> str:
        """What to show of a failed one."""


@dataclass
class Progress:
    """A line at the start and at the end of every task.

    Attributes:
        total: Tasks that count, those included that were done before.
        done: Of them, done or failed.
        slots: How many run side by side.
    """

    total: int
    done: int = 0
    slots: int = 1
    begun: float = field(default_factory=time.monotonic)
    took: list[float] = field(default_factory=list)

    def started(self, task: Task) -> None:
        """Say that a task starts."""
        logger.info("%s: starts (%d of %d rows done)", task.name, self.done, self.total)

    def ended(self, task: Task, seconds: float, failure: str | None = None) -> None:
        """Say how a task ended; `failure` is the text of a failed one."""
        if task.counts:
            self.done += 1
            self.took += [seconds] if failure is None else []
        rows = f"{self.done} of {self.total} rows, {duration(time.monotonic() - self.begun)} so far{self._left()}"
        if failure is None:
            logger.info("%s: done in %s; %s", task.name, duration(seconds), rows)
        else:
            logger.error("%s: FAILED after %s; %s\n%s", task.name, duration(seconds), rows, failure)

    def _left(self) -> str:
        if not self.took or self.done == self.total:
            return ""
        mean = sum(self.took) / len(self.took)
        return f", about {duration(mean * (self.total - self.done) / self.slots)} left"


def duration(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.1 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def run_side_by_side(
    tasks: Sequence[Task], slots: int, start: Callable[[Task, int], Running], progress: Progress
) -> dict[str, str]:
    """Run tasks, each as soon as a slot is free and what it needs has succeeded, else in their order.

    Args:
        tasks: None waits for a later one.
        slots: How many run at a time.
        start: Starts a task in a slot, 0 to slots - 1.
        progress: Is told of every start and end.

    Returns:
        Failed task -> why, in a few words.
    """
    waiting, failed, succeeded = list(tasks), {}, set()
    given = {task.name for task in tasks}
    running: dict[int, tuple[Task, Running, float]] = {}
    try:
        while waiting or running:
            for task in [task for task in waiting if task.needs in failed]:
                waiting.remove(task)
                failed[task.name] = f"not run, as {task.needs} failed"
                progress.ended(task, 0.0, failed[task.name])
            for slot in sorted(set(range(slots)) - running.keys()):
                ready = (task for task in waiting if task.needs not in given or task.needs in succeeded)
                if (task := next(ready, None)) is not None:
                    waiting.remove(task)
                    progress.started(task)
                    running[slot] = (task, start(task, slot), time.monotonic())
            time.sleep(POLL_SECONDS)
            for slot, (task, process, since) in list(running.items()):
                if (status := process.poll()) is None:
                    continue
                del running[slot]
                if status:
                    failed[task.name] = f"status {status}"
                else:
                    succeeded.add(task.name)
                progress.ended(task, time.monotonic() - since, process.last_words() if status else None)
    finally:
        for _, process, _ in running.values():
            process.stop()
        for _, process, _ in running.values():
            process.wait()
    return failed
