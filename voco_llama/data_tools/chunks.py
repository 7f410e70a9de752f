"""Work over many records in several processes, its results in order; and the processor that measures their rows.

PyTorch's `DataLoader` does it: it keeps the order, prefetches little, and ends its workers on an interrupt.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from torch.utils.data import DataLoader
from tqdm import tqdm

from voco_llama.data.processor import VoCoProcessor
from voco_llama.data_tools.settings import check_rows_named
from voco_llama.errors import CheckpointError, SettingsError, shown
from voco_llama.hub import is_cached, is_hub_name
from voco_llama.settings import TrainSettings
from voco_llama.training.build import build_processor

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

CHUNK = 64
"""Records a task: few enough that a progress bar moves, and enough that passing results on costs little."""

LOG_SECONDS = 30.0
"""Between lines of progress, where there is no terminal for a bar."""

Chunk = tuple[int, Sequence[int]]
"""A source and some of its records."""


def chunks_of(records: Sequence[Sequence[int]]) -> list[Chunk]:
    """The records of each source, cut up.

    >>> [(source, list(part)) for source, part in chunks_of([range(65), range(2)])][1:]
    [(0, [64]), (1, [0, 1])]
    """
    return [
        (source, part[start : start + CHUNK])
        for source, part in enumerate(records)
        for start in range(0, len(part), CHUNK)
    ]


def in_order(
    function: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int | None, what: str
) -> Iterator[Result]:
    """Results of a function over all chunks, in their order, with a progress bar or lines in the log.

    Args:
        function: Picklable.
        chunks: See `chunks_of`.
        workers: Processes; None: one for each core this process may use, 0: this process.
        what: Named by the progress.

    Raises:
        SettingsError: A negative number of workers.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 0:
        raise SettingsError(f"workers is {workers}: give 0 or more, or null for one a core")
    loader = DataLoader(chunks, batch_size=None, num_workers=workers, collate_fn=function)
    total, done, logged = sum(len(records) for _, records in chunks), 0, time.monotonic()
    with tqdm(total=total, desc=what, unit=" records", disable=None) as bar:
        for (_, records), result in zip(chunks, loader, strict=True):
            yield result
            done += len(records)
            bar.update(len(records))
            if not sys.stderr.isatty() and time.monotonic() - logged > LOG_SECONDS:
                logged = time.monotonic()
                logger.info("%s: %d of %d records", what, done, total)


def prompt_line(settings: TrainSettings, processor: VoCoProcessor) -> str:
    """How a training writes and cuts its conversations."""
    style = processor.style
    system = f"system text {shown(style.system)}" if style.system else "no system text"
    if style.system is None:
        system = "system text as it has it"
    return (
        f"tokenizer of {_tokenizer(settings)}; template {style.template}, order {style.order}, {system};"
        f" data.max_length {processor.max_length}"
    )


def _tokenizer(settings: TrainSettings) -> str | None:
    return settings.model.checkpoint or settings.model.tokenizer or settings.model.language.pretrained


def find_processor(settings: TrainSettings, overrides: Sequence[str] | None = None) -> tuple[VoCoProcessor | None, str]:
    """The training's processor, or None, and one line on what lengths in tokens are measured by, or why they are not.

    Only a tokenizer that is at hand counts: nothing is fetched from the hub. Where the settings come of `overrides`,
    these must name a training, or its model.
    """
    name = _tokenizer(settings)
    key = "model.tokenizer" if settings.model.checkpoint is None else "model.checkpoint"
    try:
        if overrides is not None:
            check_rows_named(overrides)
        is_here = name is not None and (
            Path(name).exists() or (is_hub_name(name) and is_cached(name, ["tokenizer_config.json"]))
        )
        if not is_here:
            parts = "" if settings.model.checkpoint is None else ", or set model.checkpoint=null"
            raise CheckpointError(
                f"{key}: {name} is neither a folder here nor in the hub's cache; fetch or name another{parts}"
            )
        processor = build_processor(settings)
        segment = f"{processor.num_vision} vision and {processor.num_voco} VoCo tokens an image"
        return processor, f"measured by the {prompt_line(settings, processor)}; {segment}"
    except (CheckpointError, SettingsError) as error:
        logger.warning("lengths in tokens are left out: %s", error)
        return None, f"not measured: {error}"
