"""Time and memory of pieces of work that take turns, so that what disturbs a machine disturbs all of them alike."""

import logging
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from voco_llama.text import duration

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "out of memory"

Work = Callable[[int], Callable[[], object]]
"""Lays ready what a round needs, told its number, and returns what is timed."""


@dataclass
class Timing:
    """Of one piece of work.

    Attributes:
        seconds: Of each round.
        peak_bytes: On a GPU: allocated at most, beyond what was there before; None: not known.
        failed: Why it could not be measured.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failed: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it, with the spread of the seconds."""
        return asdict(self) | ({"spread": spread(self.seconds)} if self.seconds else {})


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes; at least one value."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float] | None:
    """How many times as fast `other` was as `base`, round by round; None where one of them was not measured."""
    if base["failed"] or other["failed"]:
        return None
    return spread([b / o for b, o in zip(base["seconds"], other["seconds"], strict=True)])


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def alternate(
    works: Mapping[str, Work], rounds: int, device: torch.device, what: str, warm_up: bool = True
) -> dict[str, Timing]:
    """Run each piece of work once to warm up, and then all of them in turn, in each round from another one on.

    What needs more memory than there is on a GPU is noted and left out from then on.
    """
    timings, names = {name: Timing() for name in works}, list(works)
    began = time.perf_counter()
    for number in range(-1 if warm_up else 0, rounds):
        shift = max(number, 0) % len(names)
        for name in names[shift:] + names[:shift]:
            if timings[name].failed is None:
                _run_once(works[name], max(number, 0), timings[name], device, is_warm_up=number < 0)
        said = f"round {number + 1} of {rounds}" if number >= 0 else "warmed up"
        logger.info("%s: %s, %s", what, said, duration(time.perf_counter() - began))
    return timings


def _run_once(work: Work, number: int, timing: Timing, device: torch.device, is_warm_up: bool) -> None:
    try:
        seconds, peak = timed(work(number), device)
    except torch.OutOfMemoryError:
        timing.failed = OUT_OF_MEMORY
        torch.cuda.empty_cache()
        return
    if not is_warm_up:
        timing.seconds.append(seconds)
        timing.peak_bytes = None if peak is None else max(peak, timing.peak_bytes or 0)


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """Seconds until the device is done, and the bytes that it took at most on a GPU, beyond what was there before."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began, None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, began = torch.cuda.memory_allocated(device), time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) - before


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns in a new process, that the memory of others does not touch.

    Raises:
        MemoryError: The system ended it.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, torch.get_num_threads(), *arguments).result()
    except BrokenProcessPool as error:
        raise MemoryError(OUT_OF_MEMORY) from error


def peak_of(work: Callable[[], object]) -> dict[str, int]:
    """Bytes of memory that work takes at most, beyond what its process held before, and those of the whole process.

    To be called once in a process (`in_own_process`): the system remembers the highest mark since its start.
    """
    import psutil

    before = psutil.Process().memory_info().rss
    work()
    return {"bytes": peak_rss() - before, "process_bytes": peak_rss()}


def peak_rss() -> int:
    """Bytes that this process had in memory at most; `getrusage` would give a child its parent's, if that had more."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
