"""What to change in a training that does not fit: the first of a few remedies, dearer and dearer ones.

Fewer rows a pass come first (the global batch stays), then checkpointing and higher levels of ZeRO, then adapters, then
offloading; each of them again with fewer and fewer rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from voco_llama.preflight.memory import estimate
from voco_llama.preflight.memory_plan import HALF, Adapters, Group, Plan, adapter_parameters, with_rows
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch

LORA_RANK, LORA_ALPHA = 128, 256
"""LLaVA's own (scripts/v1_5/finetune_lora.sh)."""

OFFLOAD = "trainer.deepspeed.zero_optimization.offload_{}.device=cpu"


@dataclass(frozen=True)
class Remedy:
    """Overrides that make a training fit.

    Attributes:
        overrides: For the command line.
        peak: Bytes on a GPU with them.
        host_bytes: Bytes in the machine's memory for each process.
    """

    overrides: tuple[str, ...]
    peak: int
    host_bytes: int


def what_fits(settings: TrainSettings, plan: Plan, capacity: int) -> Remedy | None:
    """The first remedy that fits, without overrides if the plan does already; None: not one of them does.

    Args:
        settings: Of the training.
        plan: Its memory plan.
        capacity: Bytes of a GPU.
    """
    for overrides, changed in _variants(settings, plan):
        for rows in _row_counts(settings):
            found = estimate(with_rows(changed, rows))
            if found.peak <= capacity:
                return Remedy((*_batch_overrides(settings, rows), *overrides), found.peak, found.host_bytes)
    return None


def _row_counts(settings: TrainSettings) -> list[int]:
    """The rows of a pass and their halves, as far as they divide what a process has of the global batch."""
    rows = GlobalBatch.of(settings).rows
    return [rows // 2**power for power in range(rows.bit_length()) if rows % 2**power == 0]


def _batch_overrides(settings: TrainSettings, rows: int) -> tuple[str, ...]:
    batch = GlobalBatch.of(settings)
    if rows == batch.rows:
        return ()
    overrides = (f"trainer.per_device_train_batch_size={rows}",)
    if settings.global_batch_size is None:
        steps = batch.accumulation * batch.rows // rows
        overrides += (f"trainer.gradient_accumulation_steps={steps}",)
    return overrides


def _variants(settings: TrainSettings, plan: Plan) -> Iterator[tuple[tuple[str, ...], Plan]]:
    yield (), plan
    kept: tuple[str, ...] = ()
    if not plan.work.checkpointing:
        kept = ("trainer.gradient_checkpointing=true",)
        plan = replace(plan, work=replace(plan.work, checkpointing=True))
        yield kept, plan
    if settings.optimizer == "muon":  # needs whole matrices, and no DeepSpeed
        return
    has_adapters = plan.adapters is not None
    levels = [level for level in (2, 3) if level > plan.placement.zero and not (level == 3 and has_adapters)]
    for level in levels if plan.placement.processes > 1 else ():
        yield (f"trainer=zero{level}", *kept), _at_level(plan, level)
    if plan.work.weights_train:
        lora = (f"model.lora.rank={LORA_RANK}", f"model.lora.alpha={LORA_ALPHA}")
        yield ("trainer=zero2", *lora, *kept), _at_level(_with_adapters(plan, settings.model.lora.targets), 2)
    level = 2 if has_adapters else 3
    group = () if plan.placement.zero == level else (f"trainer=zero{level}",)
    plan = _at_level(plan, level)
    for parts in (("optimizer",), ("optimizer", "param")) if level == 3 else (("optimizer",),):
        placement = replace(plan.placement, offload_optimizer=True, offload_parameters="param" in parts)
        overrides = (*group, *(OFFLOAD.format(part) for part in parts), *kept)
        yield overrides, replace(plan, placement=placement)


def _at_level(plan: Plan, level: int) -> Plan:
    """Under DeepSpeed as trainer=zero2 and zero3 have it: bf16, with checkpointing."""
    work = replace(plan.work, element=HALF, checkpointing=True)
    return replace(plan, work=work, placement=replace(plan.placement, zero=level, half=True))


def _with_adapters(plan: Plan, targets: Sequence[str]) -> Plan:
    """The plan with the language model frozen; besides the adapters, one embedding trains."""
    frozen = [
        replace(group, trained=0, frozen=group.trained + group.frozen) if group.part == "language" else group
        for group in plan.groups
    ]
    trained = adapter_parameters(plan.decoder, LORA_RANK, targets) + plan.decoder.hidden
    return replace(
        plan,
        groups=(*frozen, Group("language", trained, 0, HALF)),
        work=replace(plan.work, weights_train=False),
        adapters=Adapters(LORA_RANK, 0.0, tuple(targets), HALF),
    )
