"""What a training would be: shapes, parameters, steps, learning rates, sizes, memory; nothing is loaded or written."""

from dataclasses import dataclass

from voco_llama.errors import SettingsError
from voco_llama.model.losses import Objective
from voco_llama.preflight.epoch import Epoch, Length, count_epoch, count_steps
from voco_llama.preflight.fitting import Remedy, what_fits
from voco_llama.preflight.inputs import data_inputs, model_inputs
from voco_llama.preflight.memory import Estimate, estimate
from voco_llama.preflight.memory_plan import FLOAT32, HALF, Plan
from voco_llama.preflight.plan import (
    device_memory,
    memory_plan,
    segment_tokens,
    uncounted,
)
from voco_llama.preflight.shapes import MetaModel, meta_model
from voco_llama.preflight.walk import walk
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch
from voco_llama.training.checks import check_settings
from voco_llama.training.data_checks import segments_a_row, tokens_for_text
from voco_llama.training.stages import ModuleCount


@dataclass(frozen=True)
class Saved:
    """Bytes that a run writes.

    Attributes:
        final: The trained model.
        checkpoint: One to go on from: weights and optimizer.
        kept: Checkpoints at the same time, the one at hand included; 0 if none are written.
    """

    final: int
    checkpoint: int
    kept: int

    @property
    def total(self) -> int:
        """At most, on the disk."""
        return self.final + self.checkpoint * self.kept


@dataclass(frozen=True)
class Memory:
    """On a GPU.

    Attributes:
        plan: What the estimate is of.
        estimate: In bytes.
        capacity: Of the GPU, bytes; None: not known.
        remedy: Without overrides if it fits; None: nothing of ours does, or the capacity is not known.
    """

    plan: Plan
    estimate: Estimate
    capacity: int | None
    remedy: Remedy | None

    @property
    def fits(self) -> bool | None:
        """None: not known."""
        return None if self.capacity is None else self.estimate.peak <= self.capacity


@dataclass(frozen=True)
class DryRun:
    """See the module.

    Attributes:
        segment: Tokens of a segment: vision and VoCo.
        segments: Of a usual row.
        shapes: Of one forward pass of a process, in its order.
        parameters: What trains.
        batch: The rows of a step.
        max_length: Tokens of a row at most.
    """

    segment: tuple[int, int]
    segments: int
    shapes: dict[str, tuple[int, ...]]
    parameters: tuple[ModuleCount, ...]
    batch: GlobalBatch
    max_length: int
    epoch: Epoch
    length: Length
    saved: Saved
    memory: Memory
    notes: tuple[str, ...]

    @property
    def tokens_a_step(self) -> tuple[int, int | None]:
        """Of rows of full length, and of rows of the data's mean length (None: not here)."""
        mean = None
        if self.epoch.tokens is not None:
            mean = round(self.batch.size * self.epoch.tokens / self.epoch.rows)
        return self.batch.size * self.max_length, mean


def dry_run(settings: TrainSettings) -> DryRun:
    """Count what a training would be.

    Raises:
        VoCoError: Settings contradict each other, or the shape of a part is not known here.
    """
    check_settings(settings, paths=False)
    if settings.stage.name == "clip":
        raise SettingsError("dry_run is for models with a language model: stage clip trains a tower alone")
    batch = GlobalBatch.of(settings)
    meta = meta_model(settings)
    num_vision = meta.model.config.segment_shape().num_vision
    memory = plan_memory(settings, meta)
    chunk = memory.plan.work.chunk
    shapes = walk(
        meta.model,
        batch.rows,
        segments_a_row(settings),
        tokens_for_text(settings, segment_tokens(settings, meta)),
        None if chunk is None else Objective(chunk_size=chunk),
    )
    epoch = count_epoch(settings, segment_tokens(settings, meta))
    return DryRun(
        segment=(num_vision, settings.compression.num_voco),
        segments=segments_a_row(settings),
        shapes=shapes,
        parameters=tuple(meta.table),
        batch=batch,
        max_length=settings.data.max_length,
        epoch=epoch,
        length=count_steps(settings, epoch),
        saved=count_saved(settings, memory.plan),
        memory=memory,
        notes=(*meta.notes, *uncounted(settings), *_missing(settings)),
    )


def plan_memory(settings: TrainSettings, meta: MetaModel) -> Memory:
    """The estimate, and what fits if it does not.

    Raises:
        SettingsError: The rows are too short for their segments.
    """
    plan, capacity = memory_plan(settings, meta), device_memory(settings)
    remedy = None if capacity is None else what_fits(settings, plan, capacity)
    return Memory(plan, estimate(plan), capacity, remedy)


def count_saved(settings: TrainSettings, plan: Plan) -> Saved:
    """Bytes on disk.

    DeepSpeed writes the 16-bit weights twice (whole, for loading, and its own, for going on) and 12 bytes of each
    trained parameter; PyTorch the weights once and two moments of their type.
    """
    groups = [group for group in plan.groups if group.part != "teacher"]
    place, trainer = plan.placement, settings.trainer
    trained = sum(group.trained for group in groups)
    everything = trained + sum(group.frozen for group in groups)
    if place.zero:
        final = (HALF if place.half else FLOAT32) * everything
        checkpoint = 2 * final + 3 * FLOAT32 * trained
    else:
        final = sum((group.trained + group.frozen) * group.element for group in groups)
        checkpoint = final + 2 * sum(group.trained * group.element for group in groups)
    limit = trainer.get("save_total_limit")
    kept = 0 if str(trainer.get("save_strategy", "steps")) == "no" else (limit or 1) + 1
    return Saved(final, checkpoint, kept)


def _missing(settings: TrainSettings) -> list[str]:
    return [
        f"{entry.key}: {entry.name} is not here" + (" (it would be downloaded)" if entry.is_hub else "")
        for entry in (*data_inputs(settings), *model_inputs(settings))
        if not entry.is_here
    ]
