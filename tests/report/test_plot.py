"""Series of the plot against tokens, and pictures that are the same for the same numbers."""

import math
from xml.etree import ElementTree

import pytest

from tests.evaluation.rows import write_bounds, write_row
from voco_llama.evaluation.results import find_results, read_result
from voco_llama.report.aggregate import Estimate, compare
from voco_llama.report.paper import read_paper_table
from voco_llama.report.plot import (
    Series,
    paper_series,
    plot_benchmarks,
    plot_retention,
    retention_series,
    series_name,
)

SERIES = [
    Series("VoCo", tuple((n, Estimate(0.8 + n / 100, 0.02, 3)) for n in (1, 2, 4))),
    Series("pooling", ((1, Estimate(0.6, math.nan, 1)), (4, Estimate(-0.1, math.nan, 1)))),
]


@pytest.mark.parametrize(
    ("row", "num_voco", "series"),
    [
        ("voco_4", 4, "voco"),
        ("voco_16", 16, "voco"),
        ("voco_16_at_4", 4, "voco_16"),
        ("voco_1_kl", 1, "voco_kl"),
        ("voco_4_bidirectional", 4, "voco_bidirectional"),
        ("elastic_at_16", 16, "elastic"),
        ("elastic_kl_at_1", 1, "elastic_kl"),
        ("average_pool_1", 1, "average_pool"),
        ("no_mask_16_removed", 16, "no_mask_removed"),
        ("voco_16", 1, "voco_16"),
        ("mine", 2, "mine"),
    ],
)
def test_series_name(row, num_voco, series):
    assert series_name(row, num_voco) == series


def test_rows_that_choose_by_the_image_are_a_curve_of_their_means(tmp_path):
    write_bounds(tmp_path, upper=1.0, lower=0.0)
    write_row(tmp_path, "elastic_at_2", {"GQA": 0.7, "POPE": 0.7}, num_voco=2)
    for quality, tokens, value in ((0.2, 1.25, 0.6), (0.05, 2.5, 0.8), (1e-3, 7.0, 0.9)):
        kept = {"quality": quality, "tokens_per_image": tokens, "kv_bytes_per_image": 1000 * tokens}
        name = f"elastic_quality_{quality:g}"
        write_row(tmp_path, name, {"GQA": value, "POPE": value}, num_voco=16, **kept)
    series = {
        one.label: [(count, value.mean) for count, value in one.points]
        for one in retention_series(compared(tmp_path), {})
    }
    assert series == {
        "elastic": [(2, pytest.approx(0.7))],
        "elastic by quality": [(1.25, pytest.approx(0.6)), (2.5, pytest.approx(0.8)), (7.0, pytest.approx(0.9))],
    }


def compared(folder):
    return compare([read_result(file) for file in find_results(folder)], "upper", "lower")


def test_rows_become_series(tmp_path):
    write_bounds(tmp_path, upper=1.0, lower=0.0)
    write_row(tmp_path, "blind", {"GQA": 0.1, "POPE": 0.1}, "blind")
    for row, count, value in (
        ("voco_4", 4, 0.9),
        ("voco_1", 1, 0.8),
        ("voco_4_at_1", 1, 0.3),
        ("average_pool_1", 1, 0.6),
    ):
        write_row(tmp_path, row, {"GQA": value, "POPE": value}, num_voco=count)
    found = retention_series(compared(tmp_path), {"voco": "VoCo"})
    points = {one.label: [(count, round(value.mean, 6)) for count, value in one.points] for one in found}
    assert points == {
        "VoCo": [(1, 0.8), (4, 0.9)],
        "voco_4": [(1, 0.3), (4, 0.9)],  # the model of four tokens, read with fewer
        "average_pool": [(1, 0.6)],
    }
    assert not any(one.from_paper for one in found)


def test_the_papers_curve():
    table = read_paper_table("table_2")
    curve = paper_series(table, table.columns)
    assert curve.from_paper
    assert curve.label == "paper, Table 2 (mean of MMB, GQA, VQAv2, SEED)"
    assert [count for count, _ in curve.points] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert curve.points[0][1].mean == pytest.approx(0.838, abs=0.001)


def test_series_over_some_benchmarks(tmp_path):
    write_bounds(tmp_path, upper=1.0, lower=0.0)
    write_row(tmp_path, "voco_1", {"GQA": 0.8, "POPE": 0.6}, num_voco=1)
    found = [retention_series(compared(tmp_path), {}, over) for over in (None, ["GQA"])]
    assert [round(one.points[0][1].mean, 6) for (one,) in found] == [0.7, 0.8]
    table = read_paper_table("table_1")
    curve = paper_series(table, [column for column in table.columns if column != "SQA-I"])
    assert [round(100 * value.mean, 1) for _, value in curve.points] == [84.1, 70.5, 61.0]


def figure_of(monkeypatch, draw):
    """The figure that a function would have saved."""
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: seen.append(self))
    draw()
    return seen[0]


def test_three_points_make_a_line_and_the_paper_is_dashed(tmp_path, monkeypatch):
    table = read_paper_table("table_4")
    paper = paper_series(table, table.columns)
    figure = figure_of(monkeypatch, lambda: plot_retention([*SERIES, paper], tmp_path / "x"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "16", "32"]
    lines = [container.lines[0] for container in axes.containers]
    assert [line.get_linestyle() for line in lines] == ["-", "None", "--"]
    assert list(lines[0].get_ydata()) == pytest.approx([81.0, 82.0, 84.0])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert (bar[0][1], bar[1][1]) == (pytest.approx(79.0), pytest.approx(83.0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["VoCo", "pooling", paper.label]


def test_a_panel_a_benchmark_and_a_bar_a_row(tmp_path, monkeypatch):
    write_bounds(tmp_path, upper=1.0, lower=0.0)
    write_row(tmp_path, "voco_1", {"GQA": 0.8, "POPE": 0.7}, num_voco=1)
    rows = [(row.name, row) for row in compared(tmp_path).rows]
    figure = figure_of(monkeypatch, lambda: plot_benchmarks(rows, ["GQA", "POPE"], tmp_path / "x"))
    assert [axes.get_title() for axes in figure.axes] == ["GQA", "POPE"]
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [pytest.approx([100.0, 80.0, 0.0]), pytest.approx([100.0, 70.0, 0.0])]


def test_what_lies_outside_the_axis_is_marked_at_its_edge(tmp_path, monkeypatch):
    """A row far below the lower bound leaves the others their room."""
    far = Series("broken", ((1, Estimate(-2.0, 0.5, 3)), (2, Estimate(3.0, math.nan, 1)), (4, Estimate(0.5, 0.1, 3))))
    figure = figure_of(monkeypatch, lambda: plot_retention([*SERIES, far], tmp_path / "x"))
    (axes,) = figure.axes
    assert axes.get_ylim() == (-50, 150)
    assert [(text.get_text(), text.xy[1]) for text in axes.texts] == [("-200 %", -50), ("300 %", 150)]
    assert [line.get_marker() for line in axes.lines[-2:]] == ["v", "^"]
    near = figure_of(monkeypatch, lambda: plot_retention(SERIES, tmp_path / "x")).axes[0]
    assert not near.texts
    assert -50 < near.get_ylim()[0] < near.get_ylim()[1] < 150


def test_bars_that_leave_the_axis_are_marked_too(tmp_path, monkeypatch):
    write_bounds(tmp_path, upper=0.9, lower=0.8)
    write_row(tmp_path, "voco_1", {"GQA": 0.85, "POPE": 0.6}, num_voco=1)
    rows = [(row.name, row) for row in compared(tmp_path).rows]
    figure = figure_of(monkeypatch, lambda: plot_benchmarks(rows, ["GQA", "POPE"], tmp_path / "x"))
    assert {axes.get_xlim()[0] for axes in figure.axes} == {-50}
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [[], ["-200 %"]]
    (text,) = figure.axes[1].texts
    assert text.xy == (-50, 1)


def test_the_same_numbers_give_the_same_picture(tmp_path):
    for name in ("one", "two"):
        plot_retention(SERIES, tmp_path / name / "x")
    one, two = ((tmp_path / name / "x.svg").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"<dc:date>" not in one
    assert ElementTree.fromstring(one).tag.endswith("svg")
    assert (tmp_path / "one" / "x.png").read_bytes().startswith(b"\x89PNG")
