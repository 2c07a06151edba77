"""The histogram of d coarse enough to draw, and the survival function of w at both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import cell_count, cell_edges, zero_cell
from tailwatch_service.statistics.tails import ParetoFit, pareto_fit

Float64Array = NDArray[np.float64]

_DRAWN_BITS = 2
"""Four cells an octave."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of d between edges; only the occupied range."""

    edges: Float64Array
    """[K+1] ascending log-ratio edges; the cell of zero spans +-2^-30."""
    counts: NDArray[np.int64]
    """[K]"""
    below: int
    """Tokens with d <= -2^20."""
    above: int
    """Tokens with d >= 2^20."""


@dataclass(frozen=True, slots=True)
class Tail:
    """P(ratio > x) for x > 1, from the grid."""

    log_ratio: Float64Array
    """[K] ascending log x."""
    share: Float64Array
    """[K] share of tokens beyond it."""
    fit: ParetoFit | str
    """The fitted tail, or why there is none."""


@dataclass(frozen=True, slots=True)
class Survival:
    """Both tails: of w, and of 1/w."""

    upper: Tail
    lower: Tail


def histogram(summary: Summary) -> Histogram:
    """The grid of d at four cells an octave."""
    fine, coarse = schema.TOKEN_BITS, _DRAWN_BITS
    offset = summary.grid.keys - zero_cell(fine)
    # Cells of one coarse cell share the index of |d| without its last bits; zero and the ends stay themselves.
    magnitude = np.abs(offset) - 1 >> fine - coarse
    cells = np.where(offset == 0, 0, np.sign(offset) * (magnitude + 1)) + zero_cell(coarse)
    dense = np.bincount(cells, summary.grid.counts[:, 0], cell_count(coarse)).astype(np.int64)
    below, above = int(dense[0]), int(dense[-1])
    edges, inner = cell_edges(coarse)[1:-1], dense[1:-1]
    occupied = np.flatnonzero(inner)
    if len(occupied) == 0:
        return Histogram(np.empty(0), np.empty(0, np.int64), below, above)
    first, last = int(occupied[0]), int(occupied[-1])
    return Histogram(edges[first : last + 2], inner[first : last + 1], below, above)


def survival(summary: Summary) -> Survival:
    """Survival functions of w and of 1/w above 1."""
    return Survival(_tail(summary, "upper"), _tail(summary, "lower"))


def _tail(summary: Summary, side: str) -> Tail:
    offset = summary.grid.keys - zero_cell(schema.TOKEN_BITS)
    counts = summary.grid.counts[:, 0]
    inside = offset > 0 if side == "upper" else offset < 0
    order = np.argsort(np.abs(offset[inside]))
    index, tokens = np.abs(offset[inside])[order], counts[inside][order]
    positive_edges = cell_edges(schema.TOKEN_BITS)[zero_cell(schema.TOKEN_BITS) :]
    beyond = np.cumsum(tokens[::-1])[::-1]
    # A cell's lower edge is exceeded by all tokens of the cell and of those above it.
    return Tail(positive_edges[index], beyond / max(summary.tokens, 1), pareto_fit(summary, side=side))


def tail_probability(fit: ParetoFit, log_ratio: Float64Array) -> Float64Array:
    """P(ratio > x) of a fitted tail at log x above its threshold."""
    exceedance = np.expm1(np.minimum(log_ratio - fit.log_threshold, 690.0))
    if math.isclose(fit.shape, 0.0, abs_tol=1e-12):
        return fit.share * np.exp(-exceedance / fit.scale)
    base = np.maximum(1 + fit.shape * exceedance / fit.scale, 0.0)
    with np.errstate(divide="ignore"):
        probability: Float64Array = fit.share * base ** (-1 / fit.shape)
    return probability
