"""Retention against the numbers that the paper prints."""

import math
from pathlib import Path

import pytest
import yaml

from voco_llama.evaluation.retention import mean_over, plain_ratio, retention, shared_columns

TABLES = yaml.safe_load((Path(__file__).parents[2] / "eval" / "paper_tables.yaml").read_text())
TABLE_1 = TABLES["table_1"]
BOUNDS = {
    name: (upper, lower)
    for name, upper, lower in zip(TABLE_1["columns"], TABLE_1["upper"], TABLE_1["lower"], strict=True)
}


def percent(columns, scores):
    return {name: 100 * retention(value, *BOUNDS[name]) for name, value in zip(columns, scores, strict=True)}


@pytest.mark.parametrize("row", TABLE_1["rows"], ids=lambda row: row["name"])
def test_table_1_retention_and_average(row):
    """Every bracket of Table 1 follows from its raw cells within 0.1."""
    ours = percent(TABLE_1["columns"], row["scores"])
    assert list(ours.values()) == pytest.approx(row["retention"], abs=0.1)
    assert mean_over(ours, TABLE_1["columns"]) == pytest.approx(row["average"], abs=0.1)


@pytest.mark.parametrize("row", TABLES["table_2"]["rows"], ids=lambda row: str(row["num_voco"]))
def test_table_2_average(row):
    """So do Table 2's averages, but for 4 tokens: its cells, rounded to 0.1, give 90.50 where the paper has 90.4."""
    columns = TABLES["table_2"]["columns"]
    tolerance = 0.11 if row["num_voco"] == 4 else 0.1
    assert mean_over(percent(columns, row["scores"]), columns) == pytest.approx(row["average"], abs=tolerance)


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
