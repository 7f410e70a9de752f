"""What the memory estimate needs to know of a training, read off its settings and its model without weights.

And what to change where it does not fit: the first of a few remedies, dearer and dearer ones. Fewer rows a pass come
first (the global batch stays), then checkpointing and higher levels of ZeRO, then adapters, then offloading; each of
them again with fewer and fewer rows. FSDP2 is none of them: where language models train, ZeRO-3 takes less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from voco_llama.configuration import max_positions
from voco_llama.preflight.finding import GB
from voco_llama.preflight.memory import Adapters, Estimate, Pass, Plan, adapter_parameters, estimate, with_rows
from voco_llama.preflight.shapes import MetaModel
from voco_llama.settings import TrainSettings
from voco_llama.sharding import FLOAT32, HALF, MOMENTS, Group, Sharding, Zero, sharding_of
from voco_llama.training.batch import GlobalBatch, num_processes
from voco_llama.training.checks import segments_a_row, tokens_for_text
from voco_llama.training.loss_checks import has_term
from voco_llama.training.passes import uses_two_steps
from voco_llama.training.position_checks import check_positions
from voco_llama.training.stages import ALWAYS, MODULES

LORA_RANK, LORA_ALPHA = 128, 256
"""LLaVA's own (scripts/v1_5/finetune_lora.sh)."""

COUNTED_OPTIMIZER = "adamw_torch"
"""The Trainer's default; the beginning of its variants' names."""


def memory_plan(settings: TrainSettings, meta: MetaModel) -> Plan:
    """The plan at the longest rows, all of whose text is trained: nothing in training is larger.

    Raises:
        SettingsError: The rows are too short for their segments.
    """
    trainer, rows = settings.trainer, GlobalBatch.of(settings).rows
    segment = meta.model.config.segment_shape().num_vision + settings.compression.num_voco
    text = tokens_for_text(settings, segment)
    sharding, half = sharding_of(trainer), bool(trainer.get("bf16") or trainer.get("fp16"))
    groups = parameter_groups(meta.model)
    element = HALF if half else FLOAT32 if sharding.keeps_masters else groups[0].element
    if settings.loss.teacher == "checkpoint":
        groups = (*groups, Group("teacher", 0, sum(group.all for group in groups), groups[0].element, is_saved=False))
    lora, length, readings = settings.model.lora, settings.data.max_length, settings.compression.readings
    read_again = text if uses_two_steps(settings) else length
    work = Pass(
        rows=rows,
        length=length + (readings - 1) * read_again,
        images=rows * segments_a_row(settings),
        trained_tokens=readings * rows * min(text, length - 1),
        element=element,
        attention=settings.model.attention,
        checkpointing=bool(trainer.get("gradient_checkpointing") or trainer.get("activation_checkpointing")),
        weights_train="language" in settings.stage.trains and not lora.rank,
        chunk=settings.loss.chunk_size,
        reconstructed=readings * rows * segments_a_row(settings) if has_term(settings.loss, "reconstruction") else 0,
    )
    adapters = None
    if lora.rank:
        # Without masters, peft's own choice for adapters of 16-bit weights.
        adapter_element = element if sharding.keeps_masters else FLOAT32
        adapters = Adapters(lora.rank, lora.dropout, tuple(lora.targets), adapter_element)
    return Plan(groups, meta.decoder, meta.tower, work, adapters, num_processes(settings), half, sharding)


def parameter_groups(model: nn.Module) -> tuple[Group, ...]:
    """Parameters by part of `stage.trains` and element size; a tied weight counts once."""
    counted: dict[tuple[str, int], list[int]] = {}
    parts = {module: part for part, modules in MODULES.items() for module in modules} | {name: name for name in ALWAYS}
    for name, parameter in model.named_parameters():
        key = (parts[name.partition(".")[0]], parameter.element_size())
        counts = counted.setdefault(key, [0, 0])
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return tuple(Group(part, *counts, element) for (part, element), counts in counted.items())


def uncounted(settings: TrainSettings) -> list[str]:
    """What the estimates take for something else, or leave out."""
    notes, loss = [], settings.loss
    optimizer = "muon" if settings.optimizer == "muon" else str(settings.trainer.get("optim") or COUNTED_OPTIMIZER)
    if not optimizer.startswith(COUNTED_OPTIMIZER):
        notes.append(f"optimizer {optimizer} is not modelled: memory is counted as AdamW's")
    if loss.teacher in ("checkpoint", "adapters_off"):
        notes.append(
            f"loss.teacher={loss.teacher}: the time that the teacher reads is not counted; of each row it is a forward"
            " pass, about a third of what training on it takes"
        )
    if loss.own_answers:
        most = f"of {loss.own_answer_tokens}" if loss.own_answer_tokens else "of the longest answer of a step"
        notes.append(
            f"loss.own_answers: the time to write them is not counted; for each token {most}, each pass of a step reads"
            " the language model's weights once, and so again for each number of VoCo tokens that is drawn"
        )
    return notes


@dataclass(frozen=True)
class Remedy:
    """Overrides that make a training fit, and its peak with them, in bytes on a GPU."""

    overrides: tuple[str, ...]
    peak: int


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


def plan_memory(settings: TrainSettings, meta: MetaModel) -> Memory:
    """The estimate, and what fits if it does not.

    Raises:
        SettingsError: The rows are too short for their segments, or too long for the language model.
    """
    config = meta.model.config
    check_positions(settings, segments_a_row(settings), max_positions(config.text_config), config.num_vision_tokens)
    plan, capacity = memory_plan(settings, meta), None
    if settings.hardware.gpu_memory_gb is not None:
        capacity = int(settings.hardware.gpu_memory_gb * GB)
    elif torch.cuda.is_available():
        capacity = torch.cuda.get_device_properties(0).total_memory
    remedy = None if capacity is None else what_fits(settings, plan, capacity)
    return Memory(plan, estimate(plan), capacity, remedy)


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


def count_saved(settings: TrainSettings, plan: Plan) -> Saved:
    """Bytes on disk."""
    groups = [group for group in plan.groups if group.is_saved]
    final, checkpoint = plan.sharding.saved(groups, plan.half)
    trainer = settings.trainer
    limit = trainer.get("save_total_limit")
    kept = 0 if str(trainer.get("save_strategy", "steps")) == "no" else (limit or 1) + 1
    return Saved(final, checkpoint, kept)


def what_fits(settings: TrainSettings, plan: Plan, capacity: int) -> Remedy | None:
    """The first remedy that fits into `capacity` bytes, without overrides if the plan does already; None: none does.

    The rows of a pass are halved as long as they divide what a process has of the global batch.
    """
    batch = GlobalBatch.of(settings, plan.processes)
    factors = [2**power for power in range(batch.rows.bit_length()) if batch.rows % 2**power == 0]
    for overrides, changed in _variants(settings, plan):
        for factor in factors:
            rows = batch.rows // factor
            peak = estimate(with_rows(changed, rows)).peak
            if peak > capacity:
                continue
            if factor > 1 and settings.global_batch_size is None:
                overrides = (f"trainer.gradient_accumulation_steps={batch.accumulation * factor}", *overrides)
            if factor > 1:
                overrides = (f"trainer.per_device_train_batch_size={rows}", *overrides)
            return Remedy(overrides, peak)
    return None


def _variants(settings: TrainSettings, plan: Plan) -> Iterator[tuple[tuple[str, ...], Plan]]:
    yield (), plan
    kept: tuple[str, ...] = ()
    if not plan.work.checkpointing:
        kept = ("trainer.gradient_checkpointing=true",)
        plan = replace(plan, work=replace(plan.work, checkpointing=True))
        yield kept, plan
    if settings.optimizer == "muon":  # needs whole matrices
        return
    now, has_adapters = plan.sharding, plan.adapters is not None
    levels = [Zero(3)] if now.cuts_weights and now.level < 3 else [Zero(level) for level in (2, 3) if level > now.level]
    for sharding in levels if plan.processes > 1 else ():
        if not (sharding.cuts_weights and has_adapters):
            yield (*sharding.overrides(now), *kept), _divided(plan, sharding)
    if plan.work.weights_train:
        lora = (f"model.lora.rank={LORA_RANK}", f"model.lora.alpha={LORA_ALPHA}")
        adapted = _with_adapters(plan, settings.model.lora.targets)
        yield (*Zero(2).overrides(Sharding()), *lora, *kept), _divided(adapted, Zero(2))
    for offloads in (("optimizer",),) if has_adapters else (("optimizer",), ("optimizer", "param")):
        level = 2 if has_adapters else 3
        sharding = (
            replace(now, offloads=offloads) if isinstance(now, Zero) and now.level == level else Zero(level, offloads)
        )
        yield (*sharding.overrides(now), *kept), _divided(plan, sharding)


def _divided(plan: Plan, sharding: Sharding) -> Plan:
    """In bf16 and with checkpointing, as trainer=zero2 and zero3 have it."""
    work = replace(plan.work, element=HALF, checkpointing=True)
    return replace(plan, work=work, half=True, sharding=sharding)


def _with_adapters(plan: Plan, targets: Sequence[str]) -> Plan:
    """The plan with the language model frozen; besides the adapters, one embedding trains."""
    frozen = [
        replace(group, trained=0, frozen=group.all) if group.part == "language" else group for group in plan.groups
    ]
    trained = adapter_parameters(plan.decoder, LORA_RANK, targets) + plan.decoder.hidden
    return replace(
        plan,
        groups=(*frozen, Group("language", trained, 0, HALF)),
        work=replace(plan.work, weights_train=False),
        adapters=Adapters(LORA_RANK, 0.0, tuple(targets), HALF),
    )


def memory_lines(memory: Memory) -> Iterator[str]:
    """The memory estimate, line by line, and what fits."""
    estimate, work = memory.estimate, memory.plan.work
    yield f"memory of a GPU, {work.rows} rows of {work.length} tokens (GB = 10^9 bytes):"
    width = max(len(name) for name in (*(term.name for term in estimate.terms), "together"))
    yield f"  {'':<{width}}  " + "  ".join(f"{moment:>6}" for moment in MOMENTS)
    for term in estimate.terms:
        cells = (f"{term.bytes / GB:6.2f}" if moment in term.moments else " " * 6 for moment in MOMENTS)
        yield f"  {term.name:<{width}}  {'  '.join(cells)}  {term.formula}"
    yield f"  {'together':<{width}}  " + "  ".join(f"{estimate.at(moment) / GB:6.2f}" for moment in MOMENTS)
    if estimate.host_bytes:
        yield f"  in the machine's memory: {estimate.host_bytes / GB:.1f} GB for each process"
    yield f"peak: {verdict(memory)}"


def verdict(memory: Memory) -> str:
    """One line: the peak, whether it fits, and the overrides that make it fit."""
    peak = f"{memory.estimate.peak / GB:.1f} GB"
    if memory.capacity is None:
        return f"{peak}; set hardware.gpu_memory_gb to hear whether that fits"
    room = f"{memory.capacity / GB:.0f} GB"
    if memory.fits:
        return f"{peak} of {room}: fits"
    if memory.remedy is None:
        return f"{peak} of {room}: does not fit, nor do fewer rows, ZeRO-3, adapters or offloading: use more GPUs"
    remedy = memory.remedy
    return f"{peak} of {room}: does not fit; {remedy.peak / GB:.1f} GB with: {' '.join(remedy.overrides)}"
