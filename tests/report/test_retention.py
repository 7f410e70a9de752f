"""Retention, plain ratio and means; the paper's numbers are in `test_paper.py`."""

import math

import pytest

from voco_llama.report.retention import mean_over, plain_ratio, retention, shared_columns


def test_bounds_and_plain_ratio():
    assert retention(61.1, 61.1, 37.7) == 1
    assert retention(37.7, 61.1, 37.7) == 0
    assert plain_ratio(57.0, 61.1) == pytest.approx(0.9329, abs=1e-4)


def test_undefined_is_nan_and_left_out_of_the_mean():
    assert math.isnan(retention(0.5, 0.5, 0.5))
    assert math.isnan(plain_ratio(0.5, 0.0))
    assert mean_over({"a": math.nan, "b": 0.5}, ["a", "b"]) == 0.5
    assert math.isnan(mean_over({"a": math.nan}, ["a"]))


def test_shared_columns():
    assert shared_columns([{"b": 1, "a": 1, "c": 1}, {"a": 1, "b": 1}]) == ["b", "a"]
    assert shared_columns([]) == []
