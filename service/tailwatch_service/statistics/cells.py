"""The cells of a grid as stretches of d, and what two bounds cut off them: how counts and sums beyond any bound are
read from a histogram. Inside a cell d is taken to be uniform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary.grid import Grid, cell_count, cell_edges, cell_values, zero_cell

Float64Array = NDArray[np.float64]

Parts = tuple[float | None, float | None]

LARGEST_LOG = 700.0
"""Beyond e^700 products have no float64."""


@dataclass(frozen=True, slots=True)
class Cells:
    """K occupied cells; a cell whose ends are equal is a point."""

    low_K: Float64Array
    high_K: Float64Array
    units_K: Float64Array
    """Tokens, or sequences, in each."""
    tokens_K: Float64Array
    """Tokens in each; `units_K` again where the units are tokens."""

    def at(self, bound: float) -> float:
        """Units in the cell that a bound divides."""
        return float(self.units_K[(self.low_K < bound) & (bound < self.high_K)].sum())


@dataclass(frozen=True, slots=True)
class Cut:
    """Cells cut at a lower and an upper bound."""

    cells: Cells
    below: float
    """Units below the lower bound."""
    above: float
    below_tokens: float
    above_tokens: float
    unsure: float
    """Units in the cells that a bound divides."""
    low_K: Float64Array
    """What is left of each cell between the bounds."""
    high_K: Float64Array
    units_K: Float64Array


def cells_of(grid: Grid, *, bits: int, low: float = -math.inf, high: float = math.inf) -> Cells:
    """Cells of a grid, kept within the exact extremes; zero's and the outermost are points."""
    keys, edges, values = grid.keys, cell_edges(bits), cell_values(bits)
    point = (keys == zero_cell(bits)) | (keys == 0) | (keys == cell_count(bits) - 1)
    start = np.where(point, values[keys], np.maximum(edges[keys], low))
    end = np.where(point, values[keys], np.minimum(edges[keys + 1], high))
    counts = grid.counts.astype(np.float64)
    return Cells(start, np.maximum(start, end), counts[:, 0], counts[:, -1])


def cut_at(cells: Cells, low: float, high: float, *, parts: Parts = (None, None)) -> Cut:
    """Cut at low <= high; a point on a bound is inside.

    Args:
        cells: the cells.
        low: lower bound.
        high: upper bound.
        parts: of the cell that each bound divides, how much is beyond it; None: what its width says.
    """
    below_K = _known(cells, low, _part_below(cells, low), parts[0])
    above_K = _known(cells, high, 1 - _part_below(cells, high, ties=True), parts[1])
    divided_K = ((below_K > 0) & (below_K < 1)) | ((above_K > 0) & (above_K < 1))
    return Cut(
        cells=cells,
        below=float((below_K * cells.units_K).sum()),
        above=float((above_K * cells.units_K).sum()),
        below_tokens=float((below_K * cells.tokens_K).sum()),
        above_tokens=float((above_K * cells.tokens_K).sum()),
        unsure=float(cells.units_K[divided_K].sum()),
        low_K=np.clip(cells.low_K, low, high),
        high_K=np.clip(cells.high_K, low, high),
        units_K=cells.units_K * np.maximum(0.0, 1 - below_K - above_K),
    )


def joined(parts: Sequence[Cells]) -> Cells:
    """Cells of several grids of one kind, one after the other."""
    names = ("low_K", "high_K", "units_K", "tokens_K")
    return Cells(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def part_beyond(cells: Cells, bound: float, *, count: float, above: bool) -> float | None:
    """How much of the cell that a bound divides is beyond it, where `count` units are; None where it divides none."""
    divided = cells.at(bound)
    whole_K = cells.low_K >= bound if above else cells.high_K <= bound
    point_K = (cells.low_K == cells.high_K) & (cells.low_K == bound)
    return min(1.0, max(0.0, count - float(cells.units_K[whole_K & ~point_K].sum())) / divided) if divided else None


def reach_of_budget(cells: Cells, budget: float) -> float:
    """|d| up to which units stay so that the mean of d² over them is the budget; inf where all may stay."""
    size_K = np.maximum(np.abs(cells.low_K), np.abs(cells.high_K))
    square_K = (cells.low_K**2 + cells.low_K * cells.high_K + cells.high_K**2) / 3
    sizes, which_K = np.unique(size_K, return_inverse=True)
    units = np.bincount(which_K, cells.units_K)
    squares = np.bincount(which_K, cells.units_K * square_K)
    kept, moment = np.cumsum(units), np.cumsum(squares)
    over = np.flatnonzero(moment > budget * kept)
    if len(over) == 0:
        return math.inf
    first = int(over[0])
    before = sizes[first - 1] if first else 0.0
    room = budget * (kept[first] - units[first]) - (moment[first] - squares[first])
    part = room / (squares[first] - budget * units[first])
    return float(before + max(0.0, min(1.0, part)) * (sizes[first] - before))


def mean_exp(low_K: Float64Array, high_K: Float64Array) -> Float64Array:
    """Mean of e^x over each [low, high]."""
    width_K = high_K - low_K
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean_K: Float64Array = np.exp(low_K) * np.where(width_K > 0, np.expm1(width_K) / width_K, 1.0)
    # A stretch wider than float64 reaches down to 0: its mean is e^high / width.
    return np.where(width_K > LARGEST_LOG, np.exp(high_K) / np.maximum(width_K, 1.0), mean_K)


def _known(cells: Cells, bound: float, part_K: Float64Array, known: float | None) -> Float64Array:
    """The parts, with a known one in the cell that the bound divides."""
    return part_K if known is None else np.where((cells.low_K < bound) & (bound < cells.high_K), known, part_K)


def _part_below(cells: Cells, bound: float, *, ties: bool = False) -> Float64Array:
    """Part of each cell below a bound; a point that equals it counts with `ties`."""
    if math.isinf(bound):
        return np.full(len(cells.low_K), 1.0 if bound > 0 else 0.0)
    width_K = cells.high_K - cells.low_K
    point_K = cells.low_K <= bound if ties else cells.low_K < bound
    with np.errstate(divide="ignore", invalid="ignore"):
        part_K = np.clip((bound - cells.low_K) / width_K, 0.0, 1.0)
    return np.where(width_K > 0, part_K, point_K.astype(np.float64))
