"""Quantiles from the grid: order statistic number ceil(qN), read at the middle of its cell."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tailwatch_collectors.summary.grid import Grid, cell_values

QUANTILES = {
    "001": Fraction(1, 1000),
    "01": Fraction(1, 100),
    "02": Fraction(2, 100),
    "05": Fraction(5, 100),
    "25": Fraction(25, 100),
    "50": Fraction(50, 100),
    "75": Fraction(75, 100),
    "95": Fraction(95, 100),
    "98": Fraction(98, 100),
    "99": Fraction(99, 100),
    "999": Fraction(999, 1000),
}
"""Suffix of `log_ratio_q...` to probability."""


def grid_quantile(grid: Grid, q: Fraction, *, bits: int, low: float = -math.inf, high: float = math.inf) -> float:
    """Order statistic number ceil(qN), to half a cell, kept within the exact extremes; NaN where N = 0."""
    counts = grid.counts[:, 0]
    total = int(counts.sum())
    if total == 0:
        return math.nan
    rank = max(1, -(-q.numerator * total // q.denominator))
    index = int(np.searchsorted(np.cumsum(counts), rank))
    value = float(cell_values(bits)[grid.keys[index]])
    return min(max(value, low), high)
