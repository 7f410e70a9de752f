"""Plots of a report: retention against the number of tokens, and by benchmark; `stem` with `.png` and `.svg`.

The same results give the same SVG, byte for byte: ids are salted with a constant, and no date is written.
"""

import atexit
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voco_llama.report.aggregate import PERCENT, Comparison, Estimate, Row, mean_over
from voco_llama.report.paper import LOWER, UPPER, PaperTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
DOTS_PER_INCH = 150
MARKERS = "osD^vP*X<>h"
"""One more than there are colors, so that no two of a hundred series look the same."""
LINE_FROM = 3
"""Points that make a curve; fewer stay points."""
LEGEND_COLUMNS = 2
SHOWN = (-50.0, 150.0)
"""Ends of an axis of retention in %: what lies outside is marked there, and leaves the others their room."""
SPREAD = 0.02
"""Series are drawn apart by this part of the distance between 1 and 2 tokens, so that error bars do not hide others."""


@dataclass(frozen=True)
class Series:
    """Points of the plot against tokens.

    Attributes:
        label: In the legend.
        points: Number of tokens (1 or more; a mean where the image chooses) and retention (1 is the upper bound), by
            rising number.
        from_paper: Drawn dashed, in grey.
    """

    label: str
    points: tuple[tuple[float, Estimate], ...]
    from_paper: bool = False


def series_name(row: str, num_voco: int, quality: float | None = None) -> str:
    """A row's name without its number of tokens: `voco_4_kl` is in `voco_kl`, `elastic_at_4` in `elastic`.

    Rows whose images choose it are a series of their own: `elastic_quality_0.05` is in `elastic by quality`.
    """
    if quality is not None:
        return f"{re.sub(r'_quality_[0-9.e-]+$', '', row)} by quality"
    at = re.compile(rf"_at_{num_voco}$")
    return at.sub("", row) if at.search(row) else re.sub(rf"_{num_voco}(?=_|$)", "", row, count=1)


def retention_series(
    comparison: Comparison, labels: Mapping[str, str], over: Sequence[str] | None = None
) -> list[Series]:
    """Rows that read an image through VoCo tokens, but for the lower bound, as series of average retention.

    `over` are the benchmarks that are averaged; None: all shared ones.

    They are grouped by `series_name`; a series whose name is a row too (`voco_16` of `voco_16_at_4`) has that row's
    point besides. A name that is among `labels` is replaced.
    """
    lower = comparison.bounds[1].name
    points, names = {}, {}
    for row in comparison.rows:
        average = row.average("retention", comparison.shared if over is None else over)
        if row.fact("condition") == "voco" and row.name != lower and math.isfinite(average.mean):
            points[row.name] = (row.num_tokens, average)
            names[row.name] = series_name(row.name, row.fact("num_voco"), row.fact("quality"))
    found: dict[str, list[tuple[float, Estimate]]] = {}
    for name, point in points.items():
        found.setdefault(names[name], []).append(point)
    for name, members in found.items():
        if name in points and names[name] != name:
            members.append(points[name])
    return [
        Series(labels.get(name, name), tuple(sorted(points, key=lambda point: point[0])))
        for name, points in found.items()
    ]


def paper_series(table: PaperTable, over: Sequence[str]) -> Series:
    """The rows of a table of the paper, but for its bounds, over some of its columns."""
    rows = [row for name, row in table.rows.items() if name not in (UPPER, LOWER)]
    means = (mean_over(row.retentions[column] for column in over) for row in rows)
    points = [(row.num_voco, Estimate(mean, math.nan, 1)) for row, mean in zip(rows, means, strict=True)]
    label = f"paper, {table.number} (mean of {', '.join(over)})"
    return Series(label, tuple(sorted(points, key=lambda point: point[0])), from_paper=True)


def plot_retention(series: Sequence[Series], stem: Path) -> None:
    """Average retention of at least one series against the number of tokens (log axis), with standard errors."""
    figure = new_figure(7, 5.5)
    axes = figure.subplots()
    for index, one in enumerate(series):
        shift = 2 ** _shift(index, len(series))
        line = "" if len(one.points) < LINE_FROM else "--" if one.from_paper else "-"
        axes.errorbar(
            [shift * count for count, _ in one.points],
            [PERCENT * value.mean for _, value in one.points],
            yerr=_errors([value for _, value in one.points]),
            linestyle=line or "none",
            color="grey" if one.from_paper else f"C{index}",
            marker="x" if one.from_paper else MARKERS[index % len(MARKERS)],
            markersize=5,
            capsize=3,
            label=one.label,
        )
    counts = sorted({count for one in series for count, _ in one.points})
    counts = [count for count in counts if float(count).is_integer()] or counts
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:.4g}" for count in counts], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("tokens an image")
    axes.set_ylabel("average retention in %")
    _bounds(axes.axhline)
    _cut(axes, "y")
    for index, one in enumerate(series):
        color = "grey" if one.from_paper else f"C{index}"
        for count, value in one.points:
            _mark_outside(axes, "y", 2 ** _shift(index, len(series)) * count, PERCENT * value.mean, color)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    save_figure(figure, stem)


def plot_benchmarks(rows: Sequence[tuple[str, Row]], columns: Sequence[str], stem: Path) -> None:
    """One panel a benchmark, one bar a labelled row: its retention, with the standard error over seeds."""
    labels, colors = [label for label, _ in rows], [f"C{index}" for index in range(len(rows))]
    figure = new_figure(2 + 1.6 * len(columns), 1 + 0.25 * len(rows))
    panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for benchmark, axes in zip(columns, panels, strict=True):
        kept = [row.of("retention", benchmark) for _, row in rows]
        axes.barh(labels, [PERCENT * value.mean for value in kept], xerr=_errors(kept), color=colors, capsize=2)
        _bounds(axes.axvline)
        axes.set_title(benchmark, fontsize="medium")
    for benchmark, axes in zip(columns, panels, strict=True):
        _cut(axes, "x")
        for index, (_, row) in enumerate(rows):
            _mark_outside(axes, "x", index, PERCENT * row.of("retention", benchmark).mean, colors[index])
    panels[0].invert_yaxis()
    figure.supxlabel("retention in %", fontsize="medium")
    save_figure(figure, stem)


def _bounds(line: Callable[..., Any]) -> None:
    line(PERCENT, color="grey", linestyle="--", linewidth=1, zorder=0)
    line(0, color="grey", linestyle=":", linewidth=1, zorder=0)


def _shift(index: int, count: int) -> float:
    """How far a series is drawn from its number of tokens, in powers of two."""
    return SPREAD * (index - (count - 1) / 2)


def _cut(axes: "Axes", along: str) -> None:
    """End the axis of retention where `SHOWN` does, if it goes further."""
    low, high = getattr(axes, f"get_{along}lim")()
    if low < SHOWN[0] or high > SHOWN[1]:
        getattr(axes, f"set_{along}lim")(max(low, SHOWN[0]), min(high, SHOWN[1]))


def _mark_outside(axes: "Axes", along: str, place: float, value: float, color: str) -> None:
    """A triangle at the edge, and the number, for a value (%) that is not `SHOWN`; nothing for any other."""
    edge = min(max(value, SHOWN[0]), SHOWN[1])
    if not math.isfinite(value) or edge == value:
        return
    point = (place, edge) if along == "y" else (edge, place)
    below, is_y = value < edge, along == "y"
    marker = {(True, True): "v", (True, False): "^", (False, True): "<", (False, False): ">"}[is_y, below]
    axes.plot(*point, marker=marker, color=color, linestyle="none", clip_on=False, zorder=3)
    inward = 6 if below else -6
    axes.annotate(
        f"{value:.0f} %",
        point,
        xytext=(0, inward) if is_y else (inward, 0),
        textcoords="offset points",
        ha="center" if is_y else "left" if below else "right",
        va=("bottom" if below else "top") if is_y else "center",
        fontsize="x-small",
        color=color,
    )


def _errors(values: Sequence[Estimate]) -> list[float]:
    """Half the length of error bars in %; NaN draws none."""
    return [PERCENT * value.error for value in values]


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches; nothing of it is shown on a screen."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        # Its list of fonts, else written to the user's cache.
        folder = os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="voco_llama_matplotlib_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    from matplotlib.figure import Figure  # slow to import, and only a report needs it

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", stem: Path) -> None:
    """Write it to `stem` with each of `ENDINGS`."""
    import matplotlib as mpl

    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "voco-llama"}):
        for ending in ENDINGS:
            metadata = {"Date": None} if ending == ".svg" else {}
            figure.savefig(stem.with_name(stem.name + ending), dpi=DOTS_PER_INCH, metadata=metadata)
