"""The P2-P50-P98 envelope of d by inference probability: the figure of the ALP paper (arXiv 2603.19470)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid, cell_count
from tailwatch_service.statistics.quantiles import grid_quantile
from tailwatch_service.statistics.values import Value

_P2, _P50, _P98 = Fraction(2, 100), Fraction(50, 100), Fraction(98, 100)
_MIN_TOKENS = 20
"""Below 50 tokens P2 and P98 are the extremes; below 20 the extremes say nothing about a fan."""


@dataclass(frozen=True, slots=True)
class EnvelopeBin:
    """Quantiles of d among tokens of one range of inference probability; NaN where it is empty."""

    lower: float
    """Probability from which the bin starts."""
    upper: float
    tokens: int
    p2: float
    p50: float
    p98: float


def envelope(summary: Summary) -> list[EnvelopeBin]:
    """One bin per probability range, in ascending order."""
    bins = []
    for index in range(schema.PROBABILITY_BINS):
        grid = _bins(summary, index, index + 1)
        low, high = float(summary.bins.min_R[index]), float(summary.bins.max_R[index])
        quantiles = [grid_quantile(grid, q, bits=schema.BIN_BITS, low=low, high=high) for q in (_P2, _P50, _P98)]
        edges = schema.PROBABILITY_EDGES
        bins.append(EnvelopeBin(edges[index], edges[index + 1], int(grid.counts.sum()), *quantiles))
    return bins


def envelope_widths(summary: Summary) -> dict[str, Value]:
    """P98 - P2 of d where p < 0.1, and where p > 0.9."""
    low_end = schema.PROBABILITY_EDGES.index(0.1)
    high_start = schema.PROBABILITY_EDGES.index(0.9)
    return {
        "envelope_width_low": _width(summary, 0, low_end),
        "envelope_width_high": _width(summary, high_start, schema.PROBABILITY_BINS),
    }


def _width(summary: Summary, first: int, last: int) -> Value:
    grid = _bins(summary, first, last)
    tokens = int(grid.counts.sum())
    if tokens < _MIN_TOKENS:
        return f"{tokens} tokens in this range of probability, needs {_MIN_TOKENS}"
    low, high = float(summary.bins.min_R[first:last].min()), float(summary.bins.max_R[first:last].max())
    p2, p98 = (grid_quantile(grid, q, bits=schema.BIN_BITS, low=low, high=high) for q in (_P2, _P98))
    return p98 - p2 if math.isfinite(p98 - p2) else "not defined on these tokens"


def _bins(summary: Summary, first: int, last: int) -> Grid:
    """The grids of bins first .. last - 1, added up."""
    cells = cell_count(schema.BIN_BITS)
    grid = Grid.empty()
    for index in range(first, last):
        grid = grid.merge(summary.bin_grid.part(index, size=cells))
    return grid
