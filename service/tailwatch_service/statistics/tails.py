"""How heavy the tails are: Pareto k-hat of w and 1/w, Hill's estimator on d, and the weight of the shoulders.

Exceedances are read from the grid, spread evenly inside a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid, cell_count, cell_edges, cell_values, zero_cell
from tailwatch_service.statistics.values import NO_TOKENS, Value, finite, token_mean

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_MIN_TOKENS = 100
_MIN_DISTINCT = 10
_MIN_BIN_TOKENS = 200
_PRIOR_STRENGTH = 10
_PRIOR_SHAPE = 0.5
_LARGEST_LOG = 600.0
"""Exceedances above e^600 times the threshold count as that: k-hat is far beyond 1 either way, and products fit."""


@dataclass(frozen=True, slots=True)
class ParetoFit:
    """A generalised Pareto fitted to the exceedances of w (or 1/w) over its threshold."""

    shape: float
    """k-hat: below 0.5 the variance exists, above 1 not even the mean does."""
    scale: float
    """sigma in units of the threshold."""
    log_threshold: float
    """d (or -d) at the threshold."""
    exceedances: int
    share: float
    """Share of tokens above the threshold."""


def tails(summary: Summary) -> dict[str, Value]:
    """k-hat and Hill for both tails, and the tail weights."""
    found: dict[str, Value] = {}
    for side in ("upper", "lower"):
        fit = pareto_fit(summary, side=side)
        found[f"tail_khat_{side}"] = fit.shape if isinstance(fit, ParetoFit) else fit
        found[f"tail_hill_{side}"] = _hill(summary, side=side)
    found["tail_weight"] = _tail_weight(summary)
    found["tail_weight_scalar"] = _tail_weight_scalar(summary)
    return found


def pareto_fit(summary: Summary, *, side: str) -> ParetoFit | str:
    """Fit the `upper` tail of w or the `lower` one (of 1/w); the reason where there is nothing to fit."""
    picked = _exceedances(summary, side)
    if isinstance(picked, str):
        return picked
    values, threshold = picked
    # (w - u) / u: free of the size of w itself.
    exceedance = np.expm1(np.minimum(values - threshold, _LARGEST_LOG))
    shape, scale = fit_generalised_pareto(exceedance)
    return ParetoFit(shape, scale, threshold, len(values), len(values) / summary.tokens)


def fit_generalised_pareto(x: Float64Array) -> tuple[float, float]:
    """Shape k and scale sigma of positive, ascending exceedances.

    Zhang & Stephens (2009), with the weakly informative prior of Vehtari et al. (2024), "Pareto smoothed importance
    sampling", appendix C: k shrunk towards 0.5 with the weight of ten observations.
    """
    n = len(x)
    points = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    steps = np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    theta = 1 / x[-1] + (1 - steps) / (3 * quartile)
    k = np.mean(np.log1p(-theta[:, None] * x), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # At theta = 0 the profile likelihood has the exponential distribution's value.
        log_ratio = np.where(theta == 0, -math.log(float(x.mean())), np.log(-theta / k))
    likelihood = n * (log_ratio - k - 1)
    weight = np.exp(likelihood - likelihood.max())
    theta_hat = float((theta * weight).sum() / weight.sum())
    shape = float(np.mean(np.log1p(-theta_hat * x)))
    scale = -shape / theta_hat if theta_hat else float(x.mean())
    return (shape * n + _PRIOR_SHAPE * _PRIOR_STRENGTH) / (n + _PRIOR_STRENGTH), scale


def _hill(summary: Summary, *, side: str) -> Value:
    """Mean of the M largest d (or -d) minus the (M+1)-th: Hill's estimator of w's tail."""
    picked = _exceedances(summary, side)
    if isinstance(picked, str):
        return picked
    values, threshold = picked
    return finite(float(np.mean(values - threshold)))


def _exceedances(summary: Summary, side: str) -> tuple[Float64Array, float] | str:
    """The M largest d (or -d), ascending, and the (M+1)-th."""
    tokens = summary.tokens
    if tokens < _MIN_TOKENS:
        return f"{tokens} tokens, needs {_MIN_TOKENS}"
    bits = schema.TOKEN_BITS
    edges = cell_edges(bits)
    keys, counts = summary.grid.keys, summary.grid.counts[:, 0]
    limit = float(summary.maxima[schema.MAXIMA.index("log_ratio")])
    low, high = edges[keys], edges[keys + 1]
    zero = zero_cell(bits)
    if side == "lower":
        limit = -float(summary.minima[schema.MINIMA.index("log_ratio")])
        keys, counts, low, high = keys[::-1], counts[::-1], -high[::-1], -low[::-1]
    wanted = math.ceil(min(0.2 * tokens, 3 * math.sqrt(tokens)))
    from_top = np.cumsum(counts[::-1])[::-1]
    first = int(np.flatnonzero(from_top >= wanted + 1)[-1])  # the cell of the (M+1)-th
    taken = counts[first:].copy()
    taken[0] -= from_top[first] - (wanted + 1)
    if keys[first] == zero:
        return "the threshold is at 0: too few tokens differ"
    distinct = len(taken) - 1 + int(taken[0] > 1)
    if distinct < _MIN_DISTINCT:
        return f"{distinct} distinct exceedances, needs {_MIN_DISTINCT}"
    values = _spread(low[first:], np.minimum(high[first:], limit), counts[first:], taken)
    return values[1:], float(values[0])


def _spread(low: Float64Array, high: Float64Array, counts: Int64Array, taken: Int64Array) -> Float64Array:
    """The `taken` largest values of each cell, with its `counts` evenly inside (low, high), ascending."""
    low = np.where(np.isinf(low), high, low)  # an unbounded end holds its values at the other
    starts = np.cumsum(taken) - taken
    rank = np.arange(int(taken.sum())) + np.repeat(counts - taken - starts, taken)
    values: Float64Array = np.repeat(low, taken) + np.repeat((high - low) / counts, taken) * (rank + 0.5)
    return values


def _tail_weight(summary: Summary) -> Value:
    """Token-weighted mean over probability bins of (2/pi) Var[d] / E|d - median|^2: 1 for any Gaussian noise."""
    cells = cell_count(schema.BIN_BITS)
    weighted = total = 0.0
    for index in range(schema.PROBABILITY_BINS):
        grid = summary.bin_grid.part(index, size=cells)
        count = int(summary.bins.log_ratio_R.n[index])
        if count < _MIN_BIN_TOKENS:
            continue
        deviation = _median_deviation(grid)
        if deviation is None:
            continue
        variance = float(summary.bins.log_ratio_R.m2[index]) / count
        weighted += count * (2 / math.pi) * variance / deviation**2
        total += count
    if total == 0:
        return f"no probability bin with {_MIN_BIN_TOKENS} tokens whose spread the grid resolves"
    return finite(weighted / total)


def _median_deviation(grid: Grid) -> float | None:
    """E|d - median| of a bin, its tokens spread evenly inside their cells; None where one cell hides the spread."""
    edges = cell_edges(schema.BIN_BITS)
    counts = grid.counts[:, 0]
    low, high = edges[grid.keys], edges[grid.keys + 1]
    point = (grid.keys == zero_cell(schema.BIN_BITS)) | np.isinf(low) | np.isinf(high)
    middle = cell_values(schema.BIN_BITS)[grid.keys]
    low, high = np.where(point, middle, low), np.where(point, middle, high)
    before = np.cumsum(counts) - counts
    half = int(counts.sum()) / 2
    at = int(np.searchsorted(before, half, side="right")) - 1
    median = float(low[at] + (high[at] - low[at]) * (half - before[at]) / counts[at])
    size = np.abs(middle - median)
    if not point[at]:
        size[at] = ((median - low[at]) ** 2 + (high[at] - median) ** 2) / (2 * (high[at] - low[at]))
    deviation = float((size * counts).sum() / counts.sum())
    return deviation if deviation > 2 * float(high[at] - low[at]) else None


def _tail_weight_scalar(summary: Summary) -> Value:
    """2 kl_k3 / (log_ratio_abs_mean / 0.798)^2."""
    if not summary.tokens:
        return NO_TOKENS
    size = summary.token_sum("log_ratio_positive") + summary.token_sum("log_ratio_negative")
    if size == 0:
        return "every log ratio is 0"
    return finite(2 * token_mean(summary)("k3") / (size / summary.tokens / math.sqrt(2 / math.pi)) ** 2)
