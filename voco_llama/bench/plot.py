"""Plots of benchmarks: panels of bars and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voco_llama.report.plot import MARKERS, new_figure, save_figure

PANEL = 4.2
"""Inches, of each side."""
FEW_NAMES = 4
"""Below bars that stand side by side; more are written upwards."""
LEGEND_COLUMNS = 4


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


def bar_panel(title: str, unit: str, found: Mapping[str, Mapping[str, float]]) -> Panel:
    """A bar for each name, of its median, with its extremes (`measuring.spread`)."""
    spreads = found.values()
    below = [of["median"] - of["least"] for of in spreads]
    above = [of["most"] - of["median"] for of in spreads]
    curve = Curve("median, least, most", range(len(found)), [of["median"] for of in spreads], below, above)
    return Panel(title, unit, [curve], names=list(found))


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
            rotation = 90 if len(panel.names) > FEW_NAMES else 0
            axes.set_xticks(range(len(panel.names)), panel.names, fontsize="small", rotation=rotation)
        axes.set_title(panel.title, fontsize="medium")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_ylim(bottom=0)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    save_figure(figure, stem)
