"""Plots of benchmarks: panels of bars and curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voco_llama.report.plot import MARKERS, new_figure, save_figure

PANEL = 4.2
"""Inches, of each side."""


@dataclass(frozen=True)
class Curve:
    """Points by rising x, and for each how far its bar reaches below and above; none: no bars."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] = ()
    above: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """A title, what its axes are, and what is drawn; with `names`, x counts these and the points are bars."""

    title: str
    y_label: str
    curves: Sequence[Curve]
    x_label: str = ""
    names: Sequence[str] = ()


def plot_panels(panels: Sequence[Panel], stem: Path) -> None:
    """Draw panels side by side, curves of one label in one color."""
    figure = new_figure(PANEL * len(panels), PANEL)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    shown: dict[str, object] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        width = 0.8 / max(len(panel.curves), 1)
        for number, curve in enumerate(panel.curves):
            index, bars = labels.index(curve.label), (curve.below, curve.above) if curve.below else None
            if panel.names:
                places = [x + width * (number - (len(panel.curves) - 1) / 2) for x in curve.x]
                drawn = axes.bar(places, curve.y, width, yerr=bars, color=f"C{index}", capsize=2)
            else:
                drawn = axes.errorbar(
                    curve.x, curve.y, bars, color=f"C{index}", marker=MARKERS[index % len(MARKERS)], capsize=2
                )
            shown.setdefault(curve.label, drawn)
        if panel.names:
            axes.set_xticks(range(len(panel.names)), panel.names, fontsize="small")
        axes.set_title(panel.title, fontsize="medium")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_ylim(bottom=0)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), fontsize="small")
    save_figure(figure, stem)
