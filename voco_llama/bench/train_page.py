"""What `kind=train` found, as tables and plots."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voco_llama.bench.plot import Curve, Panel, plot_panels
from voco_llama.bench.results import MISSING, Page, Parts, gigabytes, times
from voco_llama.text import TextTable

PEAK, WORKLOAD, LENGTH, FRAMES = "matrix_peak", "workload", "length", "frames"
"""Parts, and beginnings of parts: what follows is a workload's name, tokens of text, frames of a clip."""
CURVES = {LENGTH: "text tokens a row", FRAMES: "frames a clip"}

NOTES = [
    "Times are medians (least to most) over rounds in which the variants take turns; a ratio is of one round, in which"
    " all step on the same batch.",
    "A step is forward, backward and, where asked for, the update; loading and preparing images is not in it.",
    "FLOPs are those that the method needs (`voco_llama/model/flops.py`): real tokens, each distinct image once,"
    " nothing twice. Utilization is of the product of two large square matrices, measured in the same run.",
    "Memory is beyond the weights: gradients, activations, what passes. On a CPU it is the resident memory of a process"
    " of its own for each variant, on the batch with the longest row; on a GPU what was allocated.",
    "How texts and conversations are distributed is assumed: `voco_llama/bench/workloads.py`.",
]


def page(parts: Parts) -> Page:
    """One table a workload, and one for each curve."""
    tables = [_workload(name.partition("/")[2], part, parts[PEAK]) for name, part in _of(parts, WORKLOAD)]
    for kind, label in CURVES.items():
        points = list(_of(parts, kind))
        if points:
            tables.append(_curve_table(points, label))
    notes = [f"matrix peak {parts[PEAK] / 1e12:.3g} TFLOP/s"] if PEAK in parts else []
    return Page("Training steps", tables, notes + NOTES)


def _of(parts: Parts, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, part) for name, part in parts.items() if name.startswith(f"{kind}/"))


def memory_of(timing: dict[str, Any]) -> int | None:
    """Bytes beyond the weights."""
    measured = timing.get("memory")
    return timing["peak_bytes"] if measured is None else measured["bytes"]


def _workload(name: str, part: dict[str, Any], peak: float) -> TextTable:
    variants, body = part["variants"], []
    base = memory_of(next(iter(variants.values())))
    for variant, timing in variants.items():
        if timing["failed"]:
            body.append([variant, timing["failed"], *[MISSING] * 5])
            continue
        memory, speed = memory_of(timing), part["needed_flops"] / timing["spread"]["median"]
        share = MISSING if memory is None or base is None else f"{memory / base:.2f}"
        cells = [times(timing["spread"]), times(timing["times_as_fast"]), gigabytes(memory), share]
        body.append([variant, *cells, f"{speed / 1e12:.3g}", f"{100 * speed / peak:.0f} %"])
    title = (
        f"{name}: {part['rows']} rows, {part['rows_a_medium']:.1f} about each image or clip, {part['text']:.0f} tokens"
        f" of text on average, {100 * part['padding']:.0f} % padding where rows are padded"
    )
    head = ["variant", "s a step", "times as fast", "memory GB", "of the first", "TFLOP/s", "utilization"]
    return TextTable(title, head, body)


def _curve_table(points: list[tuple[str, dict[str, Any]]], label: str) -> TextTable:
    names = list(points[0][1]["variants"])
    body = []
    for name, part in points:
        timings = [part["variants"][variant] for variant in names]
        seconds = [t["failed"] or f"{t['spread']['median']:.2f}" for t in timings]
        body.append([name.partition("/")[2], *seconds, *(gigabytes(memory_of(t)) for t in timings)])
    head = [label, *(f"{name}, s" for name in names), *(f"{name}, GB" for name in names)]
    return TextTable(f"Against {label}: {points[0][1]['rows']} rows, two about each image or clip", head, body)


def plot(parts: Parts, stem: Path) -> bool:
    """Ratios by workload, and time and memory against lengths and frames."""
    panels = []
    workloads = list(_of(parts, WORKLOAD))
    if workloads:
        curves = [_bars(name, workloads) for name in list(workloads[0][1]["variants"])[1:]]
        base = next(iter(workloads[0][1]["variants"]))
        names = [name.partition("/")[2] for name, _ in workloads]
        panels.append(Panel("training steps", f"times as fast as {base}", curves, names=names))
    for kind, label in CURVES.items():
        points = list(_of(parts, kind))
        if not points:
            continue
        panels.append(Panel("time", "seconds a step", _curves(points, lambda t: t["spread"]["median"]), label))
        if any(memory_of(timing) for _, part in points for timing in part["variants"].values()):
            panels.append(Panel("memory beyond the weights", "GB", _curves(points, _gigabytes), label))
    if panels:
        plot_panels(panels, stem)
    return bool(panels)


def _gigabytes(timing: dict[str, Any]) -> float:
    return (memory_of(timing) or 0) / 1e9


def _bars(variant: str, workloads: list[tuple[str, dict[str, Any]]]) -> Curve:
    found = [part["variants"][variant]["times_as_fast"] for _, part in workloads]
    kept = [(place, ratio) for place, ratio in enumerate(found) if ratio is not None]
    return Curve(
        variant,
        [place for place, _ in kept],
        [ratio["median"] for _, ratio in kept],
        [ratio["median"] - ratio["least"] for _, ratio in kept],
        [ratio["most"] - ratio["median"] for _, ratio in kept],
    )


def _curves(points: list[tuple[str, dict[str, Any]]], value: Any) -> list[Curve]:
    curves = []
    for variant in points[0][1]["variants"]:
        kept = [(int(name.partition("/")[2]), part["variants"][variant]) for name, part in points]
        kept = [(x, timing) for x, timing in kept if not timing["failed"]]
        curves.append(Curve(variant, [x for x, _ in kept], [value(timing) for _, timing in kept]))
    return curves
