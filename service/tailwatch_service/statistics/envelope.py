"""The P2-P50-P98 envelope of d by inference probability: the figure of the ALP paper (arXiv 2603.19470)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid, cell_count
from tailwatch_service.statistics.quantiles import grid_quantile
from tailwatch_service.statistics.values import Value, finite

_P2, _P50, _P98 = Fraction(2, 100), Fraction(50, 100), Fraction(98, 100)
_MIN_TOKENS = 20
"""Below 50 tokens P2 and P98 are the extremes; below 20 the extremes say nothing about a fan."""

LOW_BINS = (0, schema.PROBABILITY_EDGES.index(0.1))
"""First and last + 1 of the bins with p < 0.1."""
HIGH_BINS = (schema.PROBABILITY_EDGES.index(0.9), schema.PROBABILITY_BINS)
"""Of those with p > 0.9."""


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
    edges, counts = schema.PROBABILITY_EDGES, summary.bins.counts_RC[:, 0]
    return [
        EnvelopeBin(
            edges[index],
            edges[index + 1],
            int(counts[index]),
            *(bins_quantile(summary, index, index + 1, q) for q in (_P2, _P50, _P98)),
        )
        for index in range(schema.PROBABILITY_BINS)
    ]


def envelope_widths(summary: Summary) -> dict[str, Value]:
    """P98 - P2 of d where p < 0.1, and where p > 0.9."""
    return {
        "envelope_width_low": envelope_width_low(summary),
        "envelope_width_high": _width(summary, *HIGH_BINS),
    }


def _width(summary: Summary, first: int, last: int) -> Value:
    tokens = int(summary.bins.counts_RC[first:last, 0].sum())
    if tokens < _MIN_TOKENS:
        return f"{tokens} tokens in this range of probability, needs {_MIN_TOKENS}"
    return finite(bins_quantile(summary, first, last, _P98) - bins_quantile(summary, first, last, _P2))


def envelope_width_low(summary: Summary) -> Value:
    """P98 - P2 of d where p < 0.1."""
    return _width(summary, *LOW_BINS)


def bins_quantile(summary: Summary, first: int, last: int, q: Fraction) -> float:
    """Quantile of d over the bins first .. last - 1; NaN where they are empty."""
    low, high = bins_extremes(summary, first, last)
    return grid_quantile(bins_grid(summary, first, last), q, bits=schema.BIN_BITS, low=low, high=high)


def bins_extremes(summary: Summary, first: int, last: int) -> tuple[float, float]:
    """Smallest and largest d of the bins first .. last - 1."""
    return float(summary.bins.min_R[first:last].min()), float(summary.bins.max_R[first:last].max())


def bins_grid(summary: Summary, first: int, last: int) -> Grid:
    """The grids of bins first .. last - 1, added up."""
    cells = cell_count(schema.BIN_BITS)
    joined = summary.bin_grid.span(first * cells, last * cells)
    return joined if last - first == 1 else Grid.of_keys(joined.keys % cells, joined.counts)
