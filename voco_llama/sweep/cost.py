"""What the trainings of a sweep would take, by the arithmetic of a training's dry run: GPU hours, and their price.

Trainings that are planned for no GPU (`hardware.num_processes`) are not counted, nor are evaluations.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voco_llama.errors import VoCoError
from voco_llama.preflight.dry_run import dry_run
from voco_llama.preflight.finding import GB
from voco_llama.preflight.plan import verdict
from voco_llama.preflight.scale import assumed, cost_text
from voco_llama.settings import HardwareSettings, TrainSettings
from voco_llama.sweep.plan import TRAIN, Command
from voco_llama.sweep.records import Records
from voco_llama.text import aligned

UNKNOWN = "?"


@dataclass(frozen=True)
class Cost:
    """Of one training, and how many seeds want it.

    Attributes:
        gpu_hours: Of all its GPUs together; None: how long it is, is not known here.
        peak: Bytes on a GPU; None: not known either.
        problem: Why it does not fit, or is not known.
    """

    name: str
    seeds: int
    gpu_hours: float | None
    peak: int | None
    problem: str
    hardware: HardwareSettings


def costs_of(commands: Iterable[Command], records: Records) -> list[Cost]:
    """Of every training for GPUs among commands of all seeds, each counted once."""
    alike: dict[tuple[str, ...], list[Command]] = {}
    for command in dict.fromkeys(commands):  # base stages that seeds share are one
        if command.name == TRAIN:
            alike.setdefault(command.overrides, []).append(command)
    found = ((records.compose(same[0]), same) for same in alike.values())
    return [_cost(settings, same) for settings, same in found if settings.hardware.num_processes is not None]


def _cost(settings: TrainSettings, same: Sequence[Command]) -> Cost:
    name, hardware = Path(settings.output_dir).name, settings.hardware
    try:
        run = dry_run(replace(settings, hardware=replace(hardware, scales=[])))
    except VoCoError as error:  # a shape that a stage before it makes, say; mistakes are refused where they are checked
        return Cost(name, len(same), None, None, f"not counted: {error}", hardware)
    problem = verdict(run.memory) if run.memory.fits is False else ""
    return Cost(name, len(same), run.scales.planned.gpu_hours, run.memory.estimate.peak, problem, hardware)


def cost_lines(costs: Sequence[Cost]) -> Iterator[str]:
    """A table, the sum, and what they are counted from; nothing where there is no training for GPUs."""
    if not costs:
        return
    yield f"GPU hours, at {'; '.join(dict.fromkeys(assumed(cost.hardware) for cost in costs))}:"
    head = ("training", "GPUs", "GB a GPU", "each", "seeds", "all seeds")
    yield from (f"  {line}" for line in aligned(head, map(_cells, costs)).splitlines())
    known = [
        (cost.gpu_hours * cost.seeds, cost.hardware.gpu_hour_price) for cost in costs if cost.gpu_hours is not None
    ]
    without = f", without {len(costs) - len(known)} of unknown length" if len(known) < len(costs) else ""
    hours, prices = sum(hours for hours, _ in known), {price for _, price in known}
    if len(prices) < 2:
        yield f"  together: {cost_text(hours, *(prices or {None}))}{without}; evaluations are not counted"
    else:
        total = sum(hours * (price or 0) for hours, price in known)
        yield f"  together: {hours:,.1f} GPU hours, {total:,.2f} at their prices{without}; evaluations are not counted"
    yield from (f"  {cost.name}: {cost.problem}" for cost in costs if cost.problem)


def _cells(cost: Cost) -> tuple[str, ...]:
    each, together = (UNKNOWN,) * 2
    if cost.gpu_hours is not None:
        each, together = (f"{hours:,.1f}" for hours in (cost.gpu_hours, cost.gpu_hours * cost.seeds))
    peak = UNKNOWN if cost.peak is None else f"{cost.peak / GB:.1f}" + ("!" if cost.problem else "")
    return cost.name, str(cost.hardware.num_processes), peak, each, str(cost.seeds), together
