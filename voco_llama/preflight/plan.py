"""What the memory estimate needs to know of a training, read off its settings and its model without weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voco_llama.preflight.memory_plan import FLOAT32, HALF, MAX_LIVE, Adapters, Group, Pass, Placement, Plan
from voco_llama.preflight.shapes import MetaModel
from voco_llama.settings import TrainSettings
from voco_llama.training.batch import GlobalBatch, num_processes
from voco_llama.training.data_checks import segments_a_row, tokens_for_text
from voco_llama.training.stages import MODULES

COUNTED_OPTIMIZER = "adamw_torch"
"""The Trainer's default; the beginning of its variants' names."""


def segment_tokens(settings: TrainSettings, meta: MetaModel) -> int:
    """Tokens that a segment takes in a row."""
    return meta.model.config.segment_shape().num_vision + settings.compression.num_voco


def memory_plan(settings: TrainSettings, meta: MetaModel) -> Plan:
    """The plan at the longest rows, all of whose text is trained: nothing in training is larger.

    Raises:
        SettingsError: The rows are too short for their segments.
    """
    trainer, rows = settings.trainer, GlobalBatch.of(settings).rows
    text = tokens_for_text(settings, segment_tokens(settings, meta))
    placement = _placement(settings)
    half = bool(trainer.get("bf16") or trainer.get("fp16"))
    groups = parameter_groups(meta.model)
    element = groups[0].element
    if half:
        element = HALF
    elif placement.zero:
        element = FLOAT32
    if settings.loss.teacher == "checkpoint":
        frozen = sum(group.trained + group.frozen for group in groups)
        groups = (*groups, Group("teacher", 0, frozen, groups[0].element))
    lora = settings.model.lora
    plain_loss = settings.loss.schedule is None and (settings.loss.lm, settings.loss.kl) == (1.0, 0.0)
    work = Pass(
        rows=rows,
        length=settings.data.max_length,
        images=rows * segments_a_row(settings),
        trained_tokens=rows * min(text, settings.data.max_length - 1),
        element=element,
        attention=settings.model.attention,
        checkpointing=bool(trainer.get("gradient_checkpointing") or trainer.get("activation_checkpointing")),
        weights_train="language" in settings.stage.trains and not lora.rank,
        chunk=None if plain_loss else settings.loss.chunk_size,
    )
    adapters = None
    if lora.rank:
        adapter_element = element if placement.zero else FLOAT32  # peft's own choice for adapters of 16-bit weights
        adapters = Adapters(lora.rank, lora.dropout, tuple(lora.targets), adapter_element)
    return Plan(groups, placement, meta.decoder, meta.tower, work, adapters)


def parameter_groups(model: nn.Module) -> tuple[Group, ...]:
    """Parameters by part of `stage.trains` and element size; a tied weight counts once."""
    counted: dict[tuple[str, int], list[int]] = {}
    parts = {module: part for part, modules in MODULES.items() for module in modules}
    for name, parameter in model.named_parameters():
        key = (parts[name.partition(".")[0]], parameter.element_size())
        counts = counted.setdefault(key, [0, 0])
        counts[0 if parameter.requires_grad else 1] += parameter.numel()
    return tuple(Group(part, *counts, element) for (part, element), counts in counted.items())


def zero_options(settings: TrainSettings) -> dict[str, Any]:
    """`zero_optimization` of the DeepSpeed configuration, also if that is a file; empty without DeepSpeed."""
    deepspeed = settings.trainer.get("deepspeed")
    if isinstance(deepspeed, str):
        deepspeed = json.loads(Path(deepspeed).read_text(encoding="utf-8"))
    return (deepspeed or {}).get("zero_optimization") or {}


def uncounted(settings: TrainSettings) -> list[str]:
    """What the estimate takes for something else."""
    trainer, notes = settings.trainer, []
    if trainer.get("fsdp"):
        notes.append("FSDP is not modelled: memory is counted as if each GPU held everything")
    optimizer = "muon" if settings.optimizer == "muon" else str(trainer.get("optim") or COUNTED_OPTIMIZER)
    if not optimizer.startswith(COUNTED_OPTIMIZER):
        notes.append(f"optimizer {optimizer} is not modelled: memory is counted as AdamW's")
    return notes


def _placement(settings: TrainSettings) -> Placement:
    zero = zero_options(settings)

    def is_offloaded(part: str) -> bool:
        return (zero.get(f"offload_{part}") or {}).get("device", "none") != "none"

    live = zero.get("stage3_max_live_parameters", MAX_LIVE)
    return Placement(
        processes=num_processes(settings),
        zero=zero.get("stage", 0),
        half=bool(settings.trainer.get("bf16") or settings.trainer.get("fp16")),
        offload_optimizer=is_offloaded("optimizer"),
        offload_parameters=is_offloaded("param"),
        max_live=live if isinstance(live, int) else MAX_LIVE,
    )


def device_memory(settings: TrainSettings) -> int | None:
    """Bytes of a GPU: what the settings plan for, else of the one that is here; None: neither."""
    if settings.hardware.gpu_memory_gb is not None:
        return int(settings.hardware.gpu_memory_gb * 1e9)
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return None
