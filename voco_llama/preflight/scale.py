"""A training on other numbers of GPUs than planned, by arithmetic: what changes, and what to do where it ends.

What does not change is the order of the records: they are a pure function of seed, epoch and global batch. Steps take
the FLOPs that the method needs (`voco_llama.model.flops`) at a stated part of what the GPUs can do; what processes send
each other is counted, and not timed, since most of it goes on beside the computation.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.model.flops import training_flops
from voco_llama.preflight.epoch import Epoch
from voco_llama.preflight.finding import GB
from voco_llama.preflight.memory import estimate, with_rows
from voco_llama.preflight.plan import Memory, Saved, verdict, what_fits
from voco_llama.settings import HardwareSettings, TrainSettings
from voco_llama.text import aligned, duration
from voco_llama.training.batch import GlobalBatch, rows_of_a_pass
from voco_llama.training.checks import segments_a_row

TERA, HOUR = 1e12, 3600
QUESTIONS = 10_000
"""About as many as a benchmark of the paper has."""


@dataclass(frozen=True)
class Scale:
    """A training on one number of GPUs.

    Attributes:
        batch: Its rows of a step; more than the recipe's where these cannot be divided.
        received: Bytes that each process gets from the others in a step.
        seconds: Of a step.
        steps: Of the training; None: not known.
    """

    batch: GlobalBatch
    memory: Memory
    received: int
    seconds: float
    steps: int | None

    @property
    def gpu_hours(self) -> float | None:
        """Of the whole training, of all GPUs together; None: not known."""
        return None if self.steps is None else self.batch.processes * self.steps * self.seconds / HOUR


@dataclass(frozen=True)
class Scales:
    """A training on several numbers of GPUs.

    Attributes:
        planned: The one that the settings plan for, also among `each`.
        size: Rows of a step by the recipe.
        flops: That these need.
        mean: Whether their length is the data's on average; else they are of full length.
        in_pieces: Bytes of a checkpoint that the processes share in writing; the first writes the others.
    """

    each: tuple[Scale, ...]
    planned: Scale
    size: int
    flops: int
    mean: bool
    hardware: HardwareSettings
    saved: Saved
    in_pieces: int


def scales_of(
    settings: TrainSettings, config: VoCoLlamaConfig, memory: Memory, epoch: Epoch, steps: int | None, saved: Saved
) -> Scales | None:
    """The training on `hardware.scales` GPUs and on those that are planned; None where none are.

    Args:
        config: Of the model.
        memory, epoch, steps, saved: Of the training as planned.
    """
    hardware = settings.hardware
    if hardware.num_processes is None:
        return None
    size = GlobalBatch.of(settings, memory.plan.processes).size
    flops = step_flops(settings, config, epoch, size)
    each = []
    for processes in sorted({memory.plan.processes, *hardware.scales}):
        batch = divided(settings, size, processes)
        there = _memory(settings, memory, batch)
        speed = processes * hardware.gpu_tflops * TERA * hardware.utilization
        seconds = flops * batch.size / size / speed
        has_fixed_steps = settings.trainer.get("max_steps", -1) > 0
        number = steps if steps is None or has_fixed_steps else math.ceil(steps * size / batch.size)
        plan = there.plan
        received = plan.sharding.exchanged(plan.groups, plan.half, batch.accumulation) * (processes - 1) // processes
        each.append(Scale(batch, there, received, seconds, number))
    sharding, in_pieces = memory.plan.sharding, 0
    if sharding.cuts_matrices:  # whole weights are written for loading, and once more if they are not divided
        in_pieces = saved.checkpoint - saved.final * (1 if sharding.cuts_weights else 2)
    planned = next(scale for scale in each if scale.batch.processes == memory.plan.processes)
    return Scales(tuple(each), planned, size, flops, epoch.tokens is not None, hardware, saved, in_pieces)


def divided(settings: TrainSettings, size: int, processes: int) -> GlobalBatch:
    """The rows of a step among so many processes: those of a pass as they are set, or fewer where they do not divide.

    Where none do, each process has as few as it can in a pass, and the step as many more as it takes.
    """
    rows, least = rows_of_a_pass(settings), settings.data.share_media
    fitting = (number for number in range(rows, 0, -least) if size % (processes * number) == 0)
    number = next(fitting, least)
    return GlobalBatch(processes, number, math.ceil(size / (processes * number)))


def _memory(settings: TrainSettings, memory: Memory, batch: GlobalBatch) -> Memory:
    plan = with_rows(replace(memory.plan, processes=batch.processes), batch.rows)
    trainer = settings.trainer | {"per_device_train_batch_size": batch.rows}
    settings = replace(settings, trainer=trainer, global_batch_size=batch.size)
    remedy = None if memory.capacity is None else what_fits(settings, plan, memory.capacity)
    return Memory(plan, estimate(plan), memory.capacity, remedy)


def step_flops(settings: TrainSettings, config: VoCoLlamaConfig, epoch: Epoch, size: int) -> int:
    """FLOPs of a step, of rows of the data's mean length, or of full length where the data is not here.

    All text is taken to train; those of a teacher, and of answers that the student writes, are left out.
    """
    shape, segments = config.segment_shape(), segments_a_row(settings)
    tokens, images = settings.data.max_length, float(segments)
    if epoch.tokens is not None:
        tokens, images = epoch.tokens / epoch.rows, epoch.encoded / epoch.rows
        segments = epoch.images / epoch.rows
    text = max(tokens - segments * (shape.num_compressed + shape.num_voco), 0)
    readings = settings.compression.readings
    a_row = training_flops(
        config, [text] * readings, [segments] * readings, images, readings * text, settings.stage.trains
    )
    return size * a_row


def scale_lines(scales: Scales) -> Iterator[str]:
    """A table, what it is counted from, and what to do where the batch or the memory does not go so far."""
    head = ("GPUs", "rows x passes", "GB a GPU", "a step", "in all", "GB received", "GB/s", "GB written", "questions")
    body = [_cells(scale, scales) for scale in scales.each]
    yield "on other numbers of GPUs, the same records in the same order (that of seed, epoch and global batch):"
    yield from (f"  {line}" for line in aligned(head, body).splitlines())
    hardware, saved = scales.hardware, scales.saved
    rows = f"{scales.size} rows of {'the mean' if scales.mean else 'full'} length"
    yield (
        f"  time: {scales.flops / TERA:,.0f} TFLOPs for {rows}, at {assumed(hardware)}; data and network are taken to"
        " keep up"
    )
    if (hours := scales.planned.gpu_hours) is not None:
        yield f"  cost: {cost_text(hours, hardware.gpu_hour_price)}, at that utilization"
    yield "  received: by each process in a step; GB/s hide that behind the computation"
    seconds = saved.checkpoint / GB / hardware.disk_gb_per_second
    who = "every process its piece, the first the whole weights too" if scales.in_pieces else "the first process"
    yield (
        f"  written: {who}; a checkpoint is {saved.checkpoint / GB:,.1f} GB on any number of GPUs,"
        f" {duration(seconds)} at hardware.disk_gb_per_second={hardware.disk_gb_per_second:g}"
    )
    yield f"  questions: of {QUESTIONS:,} that an evaluation divides, those of each process"
    for scale in scales.each:
        processes = scale.batch.processes
        if scale.batch.size != scales.size:
            most = max(number for number in range(1, processes) if scales.size % (number * scale.batch.rows) == 0)
            yield (
                f"  {processes} GPUs cannot divide {scales.size} rows: use {most} at most, or set"
                f" global_batch_size={scale.batch.size} and find the learning rate anew"
            )
        if scale.memory.fits is False:
            yield f"  {processes} GPUs: {verdict(scale.memory)}"


def assumed(hardware: HardwareSettings) -> str:
    """How fast a GPU is taken to be, by the settings that say it."""
    return f"hardware.utilization={hardware.utilization:g} of hardware.gpu_tflops={hardware.gpu_tflops:g} a GPU"


def cost_text(gpu_hours: float, price: float | None) -> str:
    """GPU hours, and what they cost or how to hear it."""
    if price is None:
        return f"{gpu_hours:,.1f} GPU hours (their price: hardware.gpu_hour_price)"
    return f"{gpu_hours:,.1f} GPU hours, {gpu_hours * price:,.2f} at hardware.gpu_hour_price={price:g}"


def _cells(scale: Scale, scales: Scales) -> tuple[str, ...]:
    batch, saved, n = scale.batch, scales.saved, scale.batch.processes
    written = scales.in_pieces / n or saved.checkpoint
    return (
        str(n),
        f"{batch.rows} x {batch.accumulation}" + ("" if batch.size == scales.size else f" = {batch.size}"),
        f"{scale.memory.estimate.peak / GB:.1f}" + ("!" if scale.memory.fits is False else ""),
        f"{scale.seconds:.1f}s",
        "?" if scale.steps is None else duration(scale.steps * scale.seconds),
        f"{scale.received / GB:.1f}",
        f"{scale.received / GB / scale.seconds:.1f}",
        f"{written / GB:.1f}",
        f"{math.ceil(QUESTIONS / n):,}",
    )
