"""Tasks side by side: which starts when, and what is said about each.

How a task is started is given from outside, so that this knows nothing of training.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from voco_llama.text import duration

logger = logging.getLogger(__name__)


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


Failure = tuple[str, str]
"""Of a task: why in a few words, and what to show."""


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
        logger.info("%s: starts (%d of %d rows done)", task.name, self.done, self.total)

    def ended(self, task: Task, seconds: float, failure: str | None = None) -> None:
        """Say how a task ended; `failure` is the text of a failed one."""
        if task.counts:
            self.done += 1
            self.took += [seconds] if failure is None else []
        rows = f"{self.done} of {self.total} rows, {duration(time.monotonic() - self.begun)} so far"
        if self.took and self.done < self.total:
            mean = sum(self.took) / len(self.took)
            rows += f", about {duration(mean * (self.total - self.done) / self.slots)} left"
        if failure is None:
            logger.info("%s: done in %s; %s", task.name, duration(seconds), rows)
        else:
            logger.error("%s: FAILED after %s; %s\n%s", task.name, duration(seconds), rows, failure)


def run_side_by_side(
    tasks: Sequence[Task], slots: int, start: Callable[[Task, int], Future[Failure | None]], progress: Progress
) -> dict[str, str]:
    """Run tasks, each as soon as a slot is free and what it needs has succeeded, else in their order.

    `start` starts a task in a slot, 0 to slots - 1; no task needs a later one.

    Returns:
        Failed task -> why, in a few words.
    """
    waiting, failed = list(tasks), {}
    unmade = {task.name for task in tasks}
    running: dict[Future[Failure | None], tuple[Task, int, float]] = {}
    while waiting or running:
        for task in [task for task in waiting if task.needs in failed]:
            waiting.remove(task)
            failed[task.name] = f"not run, as {task.needs} failed"
            progress.ended(task, 0.0, failed[task.name])
        free = set(range(slots)) - {slot for _, slot, _ in running.values()}
        for slot, task in zip(sorted(free), [task for task in waiting if task.needs not in unmade], strict=False):
            waiting.remove(task)
            progress.started(task)
            begun = time.monotonic()
            running[start(task, slot)] = (task, slot, begun)
        for ended in wait(running, return_when=FIRST_COMPLETED).done:
            task, _, begun = running.pop(ended)
            if (failure := ended.result()) is None:
                unmade.remove(task.name)
            else:
                failed[task.name] = failure[0]
            progress.ended(task, time.monotonic() - begun, None if failure is None else failure[1])
    return failed
