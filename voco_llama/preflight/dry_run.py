"""What a training would be: shapes, parameters, steps, learning rates, sizes, memory; nothing is loaded or written."""

from collections.abc import Iterator
from dataclasses import dataclass

from voco_llama.data.processor import VoCoProcessor
from voco_llama.errors import SettingsError
from voco_llama.preflight.epoch import Epoch, Length, count_epoch, count_steps
from voco_llama.preflight.finding import GB
from voco_llama.preflight.plan import Memory, Saved, count_saved, memory_lines, plan_memory, uncounted
from voco_llama.preflight.scale import Scales, scale_lines, scales_of
from voco_llama.preflight.shapes import meta_model, walk
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.build import build_processor
from voco_llama.training.checks import check_settings, segments_a_row, tokens_for_text
from voco_llama.training.inputs import list_inputs
from voco_llama.training.loss_checks import teacher_budgets
from voco_llama.training.passes import uses_two_steps
from voco_llama.training.stages import ModuleCount, format_table
from voco_llama.training.teachers.teacher import check_teacher
from voco_llama.training.trackers import check_trackers


@dataclass(frozen=True)
class DryRun:
    """See the module.

    Attributes:
        segment: Tokens of a segment: vision and VoCo.
        shapes: Of one forward pass of a process, in its order.
        parameters: What trains.
        batch: The rows of a step.
        scales: The training on other numbers of GPUs; None where none is planned for.
    """

    settings: TrainSettings
    segment: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    parameters: tuple[ModuleCount, ...]
    batch: GlobalBatch
    epoch: Epoch
    length: Length
    saved: Saved
    memory: Memory
    scales: Scales | None
    notes: tuple[str, ...]

    @property
    def tokens_a_step(self) -> tuple[int, int | None]:
        """Of rows of full length, and of rows of the data's mean length (None: not here)."""
        epoch, size = self.epoch, self.batch.size
        mean = None if epoch.tokens is None else round(size * epoch.tokens / epoch.rows)
        return size * self.settings.data.max_length, mean

    @property
    def images_a_step(self) -> tuple[int, int] | None:
        """Images or frames on average, and how many of them are computed; None: not known."""
        epoch = self.epoch
        if epoch.images is None:
            return None
        return tuple(round(self.batch.size * number / epoch.rows) for number in (epoch.images, epoch.encoded))


def dry_run(settings: TrainSettings) -> DryRun:
    """Count what a training would be.

    Raises:
        VoCoError: Settings contradict each other, or the shape of a part is not known here.
    """
    check_settings(settings, paths=False)
    check_trackers(settings.trainer)
    if settings.stage.name == "clip":
        raise SettingsError("dry_run is for models with a language model: stage clip trains a tower alone")
    batch = GlobalBatch.of(settings)
    meta = meta_model(settings)
    check_parts(settings)
    segment = meta.model.config.segment_shape().num_vision, settings.compression.num_voco
    memory = plan_memory(settings, meta)
    text = tokens_for_text(settings, sum(segment))
    epoch = count_epoch(settings, sum(segment))
    length, saved = count_steps(settings, epoch), count_saved(settings, memory.plan)
    return DryRun(
        settings=settings,
        segment=segment,
        shapes=walk(meta.model, batch.rows, segments_a_row(settings), text, settings.loss.chunk_size),
        parameters=tuple(meta.table),
        batch=batch,
        epoch=epoch,
        length=length,
        saved=saved,
        memory=memory,
        scales=scales_of(settings, meta.model.config, memory, epoch, length.steps, saved),
        notes=(*meta.notes, *uncounted(settings), *_missing(settings)),
    )


def check_parts(settings: TrainSettings) -> VoCoProcessor | None:
    """Refuse a processor, and a teacher, that a training would refuse; what is not here is not looked at.

    Returns:
        The processor; None: something of the model is not here.

    Raises:
        CheckpointError: They are not the model's.
        SettingsError: The tokenizer's chat template cannot be used.
    """
    parts = [entry for entry in list_inputs(settings) if entry.part != "data" and entry.is_read]
    if any(entry.is_hub or not entry.is_here for entry in parts):
        return None
    processor = build_processor(settings)
    if settings.loss.teacher == "checkpoint":
        check_teacher(settings.loss.teacher_checkpoint, processor, teacher_budgets(settings.loss))
    return processor


def _missing(settings: TrainSettings) -> list[str]:
    return [
        f"{entry.key}: "
        + (f"{entry.repository} is not here (it would be downloaded)" if entry.is_hub else f"{entry.name} is not here")
        for entry in list_inputs(settings)
        if entry.is_read and not entry.is_here
    ]


def format_dry_run(run: DryRun) -> str:
    """Lines for a terminal."""
    return "".join(f"{line}\n" for line in _lines(run))


def _lines(run: DryRun) -> Iterator[str]:
    vision, voco = run.segment
    yield f"segment: {vision} vision + {voco} VoCo tokens; {segments_a_row(run.settings)} a row"
    if uses_two_steps(run.settings):
        yield (
            "a pass goes in two steps: each distinct image once, no padding, no mask; shapes and memory below are those"
            " of the masked pass, which takes at least as much"
        )
    yield "one forward pass of a process:"
    width = max(map(len, run.shapes))
    for name, shape in run.shapes.items():
        yield f"  {name:<{width}}  {list(shape)}"
    yield "parameters:"
    yield format_table(run.parameters)
    yield from _length(run)
    saved = run.saved
    yield (
        f"written: the model {saved.final / GB:.1f} GB; {saved.kept} checkpoints of {saved.checkpoint / GB:.1f} GB at"
        f" most; {saved.total / GB:.1f} GB together"
    )
    yield from memory_lines(run.memory)
    if run.scales is not None:
        yield from scale_lines(run.scales)
    yield from (f"note: {note}" for note in run.notes)


def _length(run: DryRun) -> Iterator[str]:
    epoch, length = run.epoch, run.length
    yield f"global batch: {run.batch}"
    at_most = "" if epoch.tokens is not None else "at most "
    counts = [
        (epoch.rows, "rows", ""),
        (epoch.images, "images or frames", at_most),
        (epoch.tokens, "tokens (estimated from characters)", ""),
    ]
    known = [f"{qualifier}{number:,} {what}" for number, what, qualifier in counts if number is not None]
    yield f"an epoch: {', '.join(known) or 'unknown'} ({epoch.source})"
    longest, mean = run.tokens_a_step
    yield f"tokens a step: {longest:,} at full length" + ("" if mean is None else f", {mean:,} of the data on average")
    if run.images_a_step is not None:
        shown, encoded = run.images_a_step
        yield f"images or frames a step: {at_most}{shown:,}, of which {encoded:,} are computed (data.share_media)"
    if length.steps is None:
        yield "steps: unknown"
        return
    epoch_steps = "" if length.steps_an_epoch is None else f" ({length.steps_an_epoch:,} an epoch)"
    yield f"steps: {length.steps:,}{epoch_steps}, the first {length.warmup:,} of them warm-up"
    rates = ", ".join(f"{rate:.2g} at {step:,}" for step, rate in length.learning_rates)
    yield f"learning rate: {rates or 'follows the training'}"
