"""Retention, means and errors over seeds, and which results may stand in one table.

The paper's numbers are in `test_paper.py`.
"""

import json
import math

import pytest

from tests.evaluation.rows import write_bounds, write_clips, write_row
from voco_llama.errors import DataError
from voco_llama.evaluation.results import find_results, read_result
from voco_llama.report.aggregate import (
    Estimate,
    check_results,
    compare,
    estimate,
    mean_over,
    paired_difference,
    plain_ratio,
    retention,
)


def read(folder):
    return {file: read_result(file) for file in find_results(folder)}


def compared(folder, names=None):
    return compare(list(read(folder).values()), "upper", "lower", names)


def test_bounds_and_plain_ratio():
    assert retention(61.1, 61.1, 37.7) == 1
    assert retention(37.7, 61.1, 37.7) == 0
    assert plain_ratio(57.0, 61.1) == pytest.approx(0.9329, abs=1e-4)


def test_undefined_is_nan_and_left_out_of_the_mean():
    assert math.isnan(retention(0.5, 0.5, 0.5))
    assert math.isnan(plain_ratio(0.5, 0.0))
    assert mean_over([math.nan, 0.5]) == 0.5
    assert math.isnan(mean_over([math.nan]))


def test_estimate():
    assert estimate([1.0, 2.0, 6.0]) == Estimate(3.0, pytest.approx(math.sqrt(7 / 3)), 3)  # deviations -2, -1, 3
    assert estimate([2.0, math.nan, 4.0]) == Estimate(3.0, pytest.approx(1.0), 2)
    alone, nothing = estimate([5.0]), estimate([])
    assert (alone.mean, math.isnan(alone.error), alone.count) == (5.0, True, 1)
    assert (math.isnan(nothing.mean), math.isnan(nothing.error), nothing.count) == (True, True, 0)


def test_retention_is_within_a_seed_then_averaged(tmp_path):
    """Not the retention of averages: with bounds 0 to 1 and 0 to 0.1, 0.5 and 0.1 keep 0.5 and 1."""
    for seed, upper, value in ((0, 1.0, 0.5), (1, 0.1, 0.1)):
        write_bounds(tmp_path / str(seed), seed, upper=upper, lower=0.0)
        write_row(tmp_path / str(seed), "voco_1", {"GQA": value, "POPE": value}, num_voco=1, seed=seed)
    (row,) = compared(tmp_path, ["voco_1"]).rows
    assert row.of("retention", "GQA") == Estimate(pytest.approx(0.75), pytest.approx(0.25), 2)
    assert row.average("retention", ["GQA", "POPE"]).mean == pytest.approx(0.75)
    assert row.of("value", "GQA").mean == pytest.approx(0.3)
    assert row.of("plain_ratio", "GQA").mean == pytest.approx(0.75)
    assert list(row.results) == [0, 1]


def test_named_rows_in_their_order_and_columns_shared_with_the_bounds(tmp_path):
    write_bounds(tmp_path)
    write_row(tmp_path, "a", {"GQA": 0.8, "MME": 100.0, "POPE": 0.5}, num_voco=1)
    write_row(tmp_path, "b", {"GQA": 0.8, "MME": 100.0}, num_voco=1)
    found = compared(tmp_path, ["b", "absent", "a"])
    assert [row.name for row in found.rows] == ["b", "a"]
    assert [row.name for row in found.bounds] == ["upper", "lower"]
    assert found.shared == ("GQA",)
    assert set(found.columns) == {"GQA", "MME", "POPE"}
    assert math.isnan(found.rows[0].of("retention", "MME").mean)  # the bounds have no MME
    assert found.seeds == (0,)


def test_paired_difference_takes_common_seeds_only(tmp_path):
    for seed in range(3):
        write_bounds(tmp_path / str(seed), seed, upper=1.0, lower=0.0)
        write_row(tmp_path / str(seed), "a", {"GQA": 0.5 + 0.2 * seed}, num_voco=1, seed=seed)
        if seed:
            write_row(tmp_path / str(seed), "b", {"GQA": 0.4 + 0.1 * seed}, num_voco=1, seed=seed)
    a, b = compared(tmp_path, ["a", "b"]).rows
    assert paired_difference(a, b, ["GQA"]) == Estimate(pytest.approx(0.25), pytest.approx(0.05), 2)  # 0.2 and 0.3
    assert paired_difference(b, a, ["GQA"]).mean == pytest.approx(-0.25)


def test_bounds_are_needed_for_every_seed(tmp_path):
    write_row(tmp_path, "voco_1", {"GQA": 0.5}, num_voco=1)
    with pytest.raises(DataError, match="the upper bound 'upper' is not among the rows voco_1"):
        compared(tmp_path)
    write_bounds(tmp_path)
    write_row(tmp_path / "b", "voco_1", {"GQA": 0.5}, num_voco=1, seed=3)
    with pytest.raises(DataError, match="row 'voco_1' has seed 3, the upper bound 'upper' has not"):
        compared(tmp_path)
    with pytest.raises(DataError, match=r"the upper bound 'upper' is not among the rows \(none\)"):
        compare([], "upper", "lower")


def test_two_results_of_one_row_and_seed(tmp_path):
    write_row(tmp_path / "a", "voco_1", {"GQA": 0.5}, num_voco=1, seed=2)
    write_row(tmp_path / "b", "voco_1", {"GQA": 0.5}, num_voco=1, seed=3)
    write_clips(tmp_path / "b", "voco_1", 0.5, 0.4, seed=2)
    check_results(read(tmp_path), allow_limited=False)
    write_row(tmp_path / "b", "voco_1", {"GQA": 0.5}, num_voco=1, seed=2)
    message = r"two results of benchmarks are named 'voco_1' with seed 2 \(.*a/voco_1.benchmarks.json, .*b/voco_1"
    with pytest.raises(DataError, match=message):
        check_results(read(tmp_path), allow_limited=False)


def test_limited_results(tmp_path):
    write_clips(tmp_path, "video", 0.5, 0.4, limit=8)
    check_results(read(tmp_path), allow_limited=True)
    with pytest.raises(DataError, match="row 'video' was evaluated on 8 questions only"):
        check_results(read(tmp_path), allow_limited=False)


def test_other_questions_within_a_seed(tmp_path):
    write_bounds(tmp_path, 0)
    write_bounds(tmp_path / "1", 1)  # another world
    check_results(read(tmp_path), allow_limited=False)
    file = write_row(tmp_path, "voco_1", {"POPE": 0.5}, num_voco=1)
    other = json.loads(file.read_text())
    other["benchmarks"]["POPE"]["data_fingerprint"] = "other questions"
    file.write_text(json.dumps(other))
    with pytest.raises(DataError, match="asked different questions of POPE with seed 0"):
        check_results(read(tmp_path), allow_limited=False)


@pytest.mark.parametrize(
    ("fact", "other"),
    [("condition", "other"), ("num_voco", 99), ("tokens_per_image", 99), ("kv_bytes_per_image", 99), ("kv_dtype", "x")],
)
def test_seeds_of_a_row_are_one_method(tmp_path, fact, other):
    write_row(tmp_path / "0", "voco_1", {"GQA": 0.5}, num_voco=1, seed=0)
    file = write_row(tmp_path / "1", "voco_1", {"GQA": 0.5}, num_voco=1, seed=1)
    file.write_text(json.dumps(json.loads(file.read_text()) | {fact: other}))
    with pytest.raises(
        DataError, match=f"row 'voco_1' has {fact} .* with seed 0 and {other} in row 'voco_1' with seed 1"
    ):
        check_results(read(tmp_path), allow_limited=False)


def test_seeds_of_a_row_that_chooses_by_the_image_cost_what_they_cost(tmp_path):
    for seed, tokens in ((0, 1.5), (1, 2.25)):
        kept = {"tokens_per_image": tokens, "kv_bytes_per_image": 1000 * tokens}
        write_row(tmp_path / str(seed), "adaptive", {"GQA": 0.5}, num_voco=16, seed=seed, quality=0.05, **kept)
    check_results(read(tmp_path), allow_limited=False)
    write_row(tmp_path / "2", "adaptive", {"GQA": 0.5}, num_voco=16, seed=2, quality=0.1)
    with pytest.raises(DataError, match="row 'adaptive' has quality 0.05 .* and 0.1 in row 'adaptive' with seed 2"):
        check_results(read(tmp_path), allow_limited=False)


def test_a_benchmark_has_one_unit(tmp_path):
    write_row(tmp_path / "0", "voco_1", {"MME": 100.0}, num_voco=1, seed=0)
    file = write_row(tmp_path / "1", "voco_2", {"MME": 100.0}, num_voco=2, seed=1)
    file.write_text(file.read_text().replace('"full": 400.0', '"full": 2000.0'))
    with pytest.raises(DataError, match="MME has full 400.0 in row 'voco_1' with seed 0 and 2000.0 in row 'voco_2'"):
        check_results(read(tmp_path), allow_limited=False)


def test_results_are_found_at_any_depth_and_other_files_are_not_read(tmp_path):
    deep = write_row(tmp_path / "seed_0" / "deep", "a.b", {"GQA": 0.5})
    clips = write_clips(tmp_path, "video", 0.5, 0.4)
    (tmp_path / "sweep.json").write_text("{}")
    assert find_results(tmp_path) == sorted([deep, clips])
