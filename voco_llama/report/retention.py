"""Retention: how much of the upper bound's lead over the lower bound a compressed model keeps (paper, section 4.2)."""

import math
from collections.abc import Mapping, Sequence


def retention(result: float, upper: float, lower: float) -> float:
    """`(result - lower) / (upper - lower)`: 1 at the upper bound, 0 at the lower; NaN where the bounds are equal.

    Args:
        result: A row's score on one benchmark, in any unit that the three share.
        upper: The model whose text sees vision.
        lower: The same weights under the VoCo mask, never trained to compress.
    """
    return (result - lower) / (upper - lower) if upper != lower else math.nan


def plain_ratio(result: float, upper: float) -> float:
    """`result / upper`; NaN where the upper bound is 0."""
    return result / upper if upper else math.nan


def shared_columns(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The benchmarks that every row has, in the first row's order."""
    return [name for name in rows[0] if all(name in row for row in rows[1:])] if rows else []


def mean_over(values: Mapping[str, float], columns: Sequence[str]) -> float:
    """Mean of the finite values in these columns; NaN if there is none."""
    finite = [values[name] for name in columns if math.isfinite(values[name])]
    return sum(finite) / len(finite) if finite else math.nan
