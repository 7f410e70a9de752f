"""The plot of retention against the number of VoCo tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from voco_llama.evaluation.retention import mean_over


def plot_retention(points: Sequence[tuple[int, Mapping[str, float]]], columns: Sequence[str], file: Path) -> None:
    """Draw one thin line a benchmark and a thick one for their mean.

    Args:
        points: Number of VoCo tokens of a row, and its retention by benchmark (1 is the upper bound).
        columns: Benchmarks that every row has.
        file: The picture, PNG.
    """
    import matplotlib as mpl  # slow to import, and only a report needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    points = sorted(points, key=lambda point: point[0])
    counts = [count for count, _ in points]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name in columns:
        axes.plot(counts, [100 * kept[name] for _, kept in points], marker=".", linewidth=1, alpha=0.7, label=name)
    means = [100 * mean_over(kept, columns) for _, kept in points]
    axes.plot(counts, means, marker="o", linewidth=2.5, color="black", label="mean")
    axes.axhline(100, color="grey", linestyle="--", linewidth=1)
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(counts)), [str(count) for count in sorted(set(counts))], minor=False)
    axes.set_xlabel("VoCo tokens an image")
    axes.set_ylabel("retention in % (0 lower bound, 100 upper bound)")
    axes.legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
