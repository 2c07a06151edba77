"""Sharpness: how strongly log-probs answer to noise. Their spread is gradient norm times mismatch.

For noise of scale s in the logits, Var[d] = s^2 * (squared norm of the score): of a sampled token with probability p
that is (1 - p)^2 plus the sum of p^2 over the other tokens. Without that sum, 1 - p alone stands for it.
"""

from __future__ import annotations

import math

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid, cell_count, cell_values, zero_cell
from tailwatch_service.statistics.envelope import envelope_widths
from tailwatch_service.statistics.values import Value, finite, ratio

MIN_BIN_TOKENS = 50
MOST_WEIGHT = 10_000
"""Tokens from which another one adds no weight to its bin: near-certain tokens would be all there is."""
MIN_BINS = 3
MIN_WIDTH = 1e-6
"""Nats: a narrower envelope is rounding."""

NOT_SENT = "the trainer sent no sum_p2_other"


def sharpness(summary: Summary) -> dict[str, Value]:
    """From log-probs alone, and from sum_p2_other where the trainer sends it."""
    sent = summary.count("tokens_score")
    count = int(summary.score_residual.n)
    nothing = "no token whose score is above rounding" if sent else NOT_SENT
    return {
        "sharpness_slope": _slope(summary),
        "sharpness_low_high": _low_high(summary),
        "score_norm_sq_mean": ratio(summary.token_sum("score_norm_sq"), sent, NOT_SENT),
        "fisher_trace": ratio(summary.token_sum("fisher_trace"), sent, NOT_SENT),
        "sharpness_residual": finite(math.sqrt(float(summary.score_residual.m2) / count)) if count else nothing,
    }


def _slope(summary: Summary) -> Value:
    """Weighted least squares of the bins' medians of |d| on their mean 1 - p."""
    complement = schema.SLICE_SUMS.index("complement")
    points = []
    for index in range(schema.PROBABILITY_BINS):
        tokens = int(summary.bins.counts_RC[index, 0])
        if tokens < MIN_BIN_TOKENS:
            continue
        grid = summary.bin_grid.part(index, size=cell_count(schema.BIN_BITS))
        mean = float(summary.bins.sums_RQ[index, complement]) / tokens
        points.append((float(min(tokens, MOST_WEIGHT)), mean, median_size(grid)))
    if len(points) < MIN_BINS:
        return f"{len(points)} probability bins with {MIN_BIN_TOKENS} tokens, needs {MIN_BINS}"
    n, x, y = (np.array(column) for column in zip(*points, strict=True))
    centred = x - (n * x).sum() / n.sum()
    spread = float((n * centred * centred).sum())
    return ratio(float((n * centred * y).sum()), spread, "the bins have one mean probability")


def median_size(grid: Grid) -> float:
    """Median of |d| over a grid per probability bin, to half a cell."""
    size = np.abs(grid.keys - zero_cell(schema.BIN_BITS))
    order = np.argsort(size, kind="stable")
    counts = np.cumsum(grid.counts[order, 0])
    at = int(np.searchsorted(counts, -(-int(counts[-1]) // 2)))
    return float(abs(cell_values(schema.BIN_BITS)[grid.keys[order[at]]]))


def _low_high(summary: Summary) -> Value:
    """The envelope's width among improbable tokens over that among confident ones."""
    widths = envelope_widths(summary)
    low, high = widths["envelope_width_low"], widths["envelope_width_high"]
    if isinstance(low, str):
        return low
    if isinstance(high, str):
        return high
    return (
        finite(low / high) if high >= MIN_WIDTH else f"the envelope of confident tokens is narrower than {MIN_WIDTH:g}"
    )
