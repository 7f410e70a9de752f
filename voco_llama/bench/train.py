"""`kind=train`: training steps the authors' way and ours, their parts on and off; time, memory, utilization.

All variants of a round step on the same batch, which is drawn anew for each round. A batch lies ready, as a loader
would have it; all that a step does with it is timed: tower, projector, language model, loss, backward pass, and the
update where that is asked for.
"""

import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from voco_llama.bench.authors import authors_loss
from voco_llama.bench.measuring import alternate, in_own_process, peak_of, ratios
from voco_llama.bench.results import Findings
from voco_llama.bench.settings import CHECKPOINTING, LIGER, BenchSettings
from voco_llama.bench.shape import build_model, images, rows
from voco_llama.bench.train_page import FRAMES, LENGTH, PEAK, WORKLOAD, page, plot
from voco_llama.bench.workloads import Drawn, draw, even
from voco_llama.layout import HostRows
from voco_llama.model.flops import training_flops
from voco_llama.model.voco_llama import VoCoLlama
from voco_llama.tokens import IGNORE_INDEX
from voco_llama.training.liger import put_into
from voco_llama.training.speed import matrix_peak

__all__ = ["measure", "page", "plot"]


@dataclass(frozen=True)
class Batch:
    """What a batch of the loader holds: rows, and the distinct images that they look at, `[images, 3, size, size]`."""

    rows: HostRows
    pixel_values: Tensor

    @classmethod
    def of(cls, model: VoCoLlama, drawn: Drawn) -> "Batch":
        """Random images and words for what was drawn."""
        media = torch.arange(drawn.num_media * drawn.frames).view(drawn.num_media, drawn.frames)
        laid_out = HostRows(rows(model, drawn.texts, drawn.frames), media, torch.tensor(drawn.medium))
        return cls(laid_out, images(model, media.numel()))

    def unshared(self) -> "Batch":
        """The same with every row's images its own."""
        places = self.rows.media[self.rows.medium]
        pixel_values = self.pixel_values[places.flatten().to(self.pixel_values.device)]
        own = torch.arange(places.numel()).view_as(places)
        return Batch(HostRows(self.rows.fields, own, torch.arange(len(own))), pixel_values)


class Liger:
    """Liger's kernels in a model, where they are entered; elsewhere it is as it was."""

    def __init__(self, model: VoCoLlama) -> None:
        self.home, self.modules = sys.modules[type(model.decoder).__module__], list(model.language_model.modules())
        before = self._state()
        put_into(model)
        self.states = before, self._state()
        self._set(before)

    def __enter__(self) -> None:
        self._set(self.states[1])

    def __exit__(self, *_: object) -> None:
        self._set(self.states[0])

    def _state(self) -> tuple[dict[str, Any], list[Any]]:
        """What Liger replaces: names of the model's file, and what modules do."""
        return dict(vars(self.home)), [module.__dict__.get("forward") for module in self.modules]

    def _set(self, state: tuple[dict[str, Any], list[Any]]) -> None:
        vars(self.home).update(state[0])
        for module, forward in zip(self.modules, state[1], strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in module.__dict__:
                del module.forward


class Stepper:
    """A model, and one way of stepping it on a batch."""

    def __init__(self, model: VoCoLlama, variant: str, optimizer: torch.optim.Optimizer | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.liger = Liger(model) if variant.endswith(LIGER) else None
        variant = variant.removesuffix(LIGER)
        self.way, self.checkpointing = variant.removesuffix(CHECKPOINTING), variant.endswith(CHECKPOINTING)
        if self.checkpointing:  # 5.17 has no `activation_`
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})

    def prepare(self, batch: Batch) -> Callable[[], Tensor]:
        """Lay a batch ready; what is returned makes its loss."""
        if self.way != "two_steps_shared":
            batch = batch.unshared()
        if self.way.startswith("two_steps"):
            return lambda: self.model(rows=batch.rows, pixel_values=batch.pixel_values, two_steps=True).loss
        on_device = {name: field.to(self.model.device) for name, field in batch.rows.fields.items()}
        if self.way == "authors":
            return lambda: authors_loss(self.model, on_device, batch.pixel_values)
        return lambda: self.model(**on_device, pixel_values=batch.pixel_values, two_steps=False).loss

    def step(self, loss: Callable[[], Tensor]) -> None:
        """Forward, backward, and the update if there is an optimizer."""
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.gradient_checkpointing = self.checkpointing
        with self.liger or nullcontext():
            loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)


def measure(settings: BenchSettings, findings: Findings) -> None:
    """See the module."""
    own, model = settings.train, build_model(settings)
    findings.add(PEAK, matrix_peak(model.device, model.dtype))
    for name in own.workloads:
        drawn = [draw(name, own.rows, settings.seed + number) for number in range(settings.rounds)]
        findings.add(f"{WORKLOAD}/{name}", _compare(settings, model, drawn, name, warm_up=name == own.workloads[0]))
    for kind, values in ((LENGTH, own.lengths), (FRAMES, own.frames)):
        for value in values:
            text, frames = (value, 1) if kind == LENGTH else (own.curve_text, value)
            drawn = [even(own.curve_rows, text, frames)] * settings.rounds
            findings.add(f"{kind}/{value}", _compare(settings, model, drawn, f"{kind} {value}"))


def _compare(
    settings: BenchSettings, model: VoCoLlama, drawn: list[Drawn], what: str, warm_up: bool = False
) -> dict[str, Any]:
    """All variants on the same batches, one a round; on a CPU one warm-up is enough for all that follows."""
    optimizer = _optimizer(settings, model)
    steppers = {name: Stepper(model, name, optimizer) for name in settings.train.variants}
    batches: dict[int, Batch] = {}

    def work(name: str, number: int) -> Callable[[], object]:
        if number not in batches:
            batches.clear()
            batches[number] = Batch.of(model, drawn[number])
        return partial(steppers[name].step, steppers[name].prepare(batches[number]))

    works = {name: partial(work, name) for name in steppers}
    warm_up = warm_up or model.device.type != "cpu"
    timed = alternate(works, settings.rounds, model.device, what, warm_up)
    timings = {name: timing.to_plain() for name, timing in timed.items()}
    model.zero_grad(set_to_none=True)
    base = next(iter(timings))
    flops = statistics.mean(needed_flops(model, one) for one in drawn)
    for name, timing in timings.items():
        timing["times_as_fast"] = ratios(timings[base], timing)
        if model.device.type == "cpu" and settings.peak_memory:
            timing["memory"] = _memory(settings, name, max(drawn, key=_size))
    places = [len(one.texts) * (one.frames * _segment(model) + max(one.texts)) for one in drawn]
    real = [len(one.texts) * one.frames * _segment(model) + sum(one.texts) for one in drawn]
    return {
        "needed_flops": flops,
        "rows": len(drawn[0].texts),
        "padding": 1 - sum(real) / sum(places),
        "rows_a_medium": statistics.mean(len(one.texts) / one.num_media for one in drawn),
        "text": statistics.mean(text for one in drawn for text in one.texts),
        "batches": [asdict(one) for one in drawn],
        "variants": timings,
    }


def _optimizer(settings: BenchSettings, model: VoCoLlama) -> torch.optim.Optimizer | None:
    if not settings.train.optimizer:
        return None
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)


def needed_flops(model: VoCoLlama, drawn: Drawn) -> int:
    """FLOPs that the method needs for a batch, whichever way takes it."""
    trained = int((rows(model, drawn.texts, drawn.frames)["labels"] != IGNORE_INDEX).sum())
    segments = [drawn.frames] * len(drawn.texts)
    return training_flops(model.config, drawn.texts, segments, drawn.num_media * drawn.frames, trained)


def _segment(model: VoCoLlama) -> int:
    shape = model.config.segment_shape()
    return shape.num_compressed + shape.num_voco


def _size(drawn: Drawn) -> int:
    return len(drawn.texts) * max(drawn.texts)


def _memory(settings: BenchSettings, variant: str, drawn: Drawn) -> dict[str, int] | None:
    """Of a step on the batch of the longest rows, in a process of its own; None: there was not enough."""
    try:
        return in_own_process(_peak, settings, variant, drawn)
    except MemoryError:
        return None


def _peak(threads: int, settings: BenchSettings, variant: str, drawn: Drawn) -> dict[str, int]:
    torch.set_num_threads(threads)
    model = build_model(settings)
    stepper, batch = Stepper(model, variant, _optimizer(settings, model)), Batch.of(model, drawn)
    return peak_of(lambda: stepper.step(stepper.prepare(batch)))
