"""95 % intervals of the metrics; the unit is the sequence (docs/intervals.md says how far they can be trusted).

Means over tokens take the linearised variance between sequences, effective sample sizes the delta method on their
logarithm, quantiles and shares the binomial at the number of tokens that clustering leaves. What cannot be given an
interval says why: a mean whose tail index is beyond 0.7 has no variance that a sample would show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid
from tailwatch_service.statistics.cells import LARGEST_LOG
from tailwatch_service.statistics.clustered import MIN_BEYOND, Clustered
from tailwatch_service.statistics.envelope import HIGH_BINS, LOW_BINS, bins_extremes, bins_grid, bins_quantile
from tailwatch_service.statistics.quantiles import QUANTILES, grid_quantile
from tailwatch_service.statistics.ratios import threshold_label
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.statistics.tails import ParetoFit, pareto_fit
from tailwatch_service.statistics.values import token_mean

Interval = tuple[float, float]
Found = Interval | str
"""An interval, or the reason there is none."""

UNRELIABLE_KHAT = 0.7
ONE_SEQUENCE = "one sequence: nothing to measure the spread between sequences by"
NOT_KEPT = "its sums over sequences are not kept"
EXACT = "a count or an extreme of this very step, not an estimate"


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals of the metrics that have a value; each of them is in exactly one of the two."""

    values: dict[str, Interval]
    missing: dict[str, str]
    """Why each of the others has none."""


@dataclass(frozen=True, slots=True)
class _Mean:
    """A metric that is scale * (mean of a cluster term) + shift."""

    term: str
    scale: float = 1.0
    shift: float = 0.0
    tails: tuple[str, ...] = ()
    """Tails that its variance depends on; none: it has no exponential in it."""
    floor: float | None = None
    """Smallest value it can take."""


_MEANS: Mapping[str, _Mean] = {
    "log_ratio_mean": _Mean("log_ratio"),
    "kl_k1": _Mean("log_ratio", scale=-1.0),
    "log_ratio_abs_mean": _Mean("log_ratio_abs", floor=0.0),
    "kl_k2": _Mean("log_ratio_sq", scale=0.5, floor=0.0),
    "second_moment": _Mean("log_ratio_sq", floor=0.0),
    "kl_k3": _Mean("k3", tails=("upper",), floor=0.0),
    "kl_unweighted_reverse_k3": _Mean("k3_inverse", tails=("lower",), floor=0.0),
    "kl_reverse_k1": _Mean("reverse_k1", tails=("upper",)),
    "kl_reverse_k3": _Mean("reverse_k3", tails=("upper",), floor=0.0),
    "js": _Mean("js", tails=("upper",), floor=0.0),
    "ratio_mean": _Mean("ratio", tails=("upper",)),
    "chi2_token": _Mean("excess_sq", tails=("upper",), floor=0.0),
    "chi2_token_uncentred": _Mean("ratio_sq", shift=-1.0, tails=("upper",), floor=-1.0),
    "tv": _Mean("excess_abs", scale=0.5, tails=("upper",), floor=0.0),
    "mult_prob_error": _Mean("ratio_abs", tails=("upper", "lower"), floor=1.0),
    "prob_diff_abs_mean": _Mean("prob_diff_abs", floor=0.0),
    "infer_logprob_mean": _Mean("infer_logprob"),
    "train_logprob_mean": _Mean("train_logprob"),
}


_SEQUENCE_SHARES = ("sequences_outside_2x_share", "sequences_outside_5x_share", "sequences_geometric_outside_share")

_REASONS = {
    "ess_sequence": "biased where sequences are few: ess_length_residual_p01 is what to judge it by",
    "length_scaling": "length_scaling_se is its standard error, where the noise is Gaussian",
}


def intervals(summary: Summary, values: Mapping[str, float]) -> Intervals:
    """The 95 % intervals of the metrics of a summary.

    Args:
        summary: the summary.
        values: its metrics, as `compute.metrics` gives them.
    """
    if summary.count("clusters") < 2:
        why = {name: _why_not(name) for name in values}
        return Intervals({}, {name: ONE_SEQUENCE if reason == NOT_KEPT else reason for name, reason in why.items()})
    made = _Maker(Clustered(summary), values)
    found = {name: made.interval(name) for name in values}
    return Intervals(
        {name: one for name, one in found.items() if not isinstance(one, str)},
        {name: one for name, one in found.items() if isinstance(one, str)},
    )


class _Maker:
    """Makes the interval of one metric after the other from one summary."""

    def __init__(self, clustered: Clustered, values: Mapping[str, float]) -> None:
        self._clustered = clustered
        self._summary = clustered.summary
        self._values = values
        self._low = float(self._summary.minima[schema.MINIMA.index("log_ratio")])
        self._high = float(self._summary.maxima[schema.MAXIMA.index("log_ratio")])
        self._fits: dict[str, ParetoFit | str] = {}
        self._others: dict[str, Callable[[], Found]] = {
            "ess_token": self._ess_token,
            "envelope_width_low": lambda: self._width(*LOW_BINS),
            "envelope_width_high": lambda: self._width(*HIGH_BINS),
        }
        for side in ("upper", "lower"):
            self._others |= {f"tail_{metric}_{side}": partial(self._tail, side, metric) for metric in ("khat", "hill")}
        for suffix, q in QUANTILES.items():
            self._others[f"log_ratio_q{suffix}"] = partial(self._quantile, q)
        for ratio, level in zip(schema.RATIO_THRESHOLDS, schema.LOG_RATIO_THRESHOLDS.tolist(), strict=True):
            label = threshold_label(ratio)
            for name, bound in ((f"above_{label}", level), (f"below_1_over_{label}", -level)):
                self._others[name] = partial(self._share, name, bound)
        self._others |= {name: partial(self._counted_share, name) for name in ("outside_2x", "outside_5x")}
        self._others |= {name: partial(self._sequence_share, name) for name in _SEQUENCE_SHARES}

    def interval(self, name: str) -> Found:
        """The interval of one metric."""
        if name in _MEANS:
            found = self._mean(self._values[name], _MEANS[name])
        elif name in self._others:
            found = self._others[name]()
        else:
            return _why_not(name)
        if isinstance(found, str) or all(map(math.isfinite, found)):
            return found
        return "exceeds float64"

    def _unreliable(self, tails: tuple[str, ...]) -> str | None:
        """Why means of exponentials have no interval here."""
        for side in tails:
            khat = self._values.get(f"tail_khat_{side}")
            if khat is not None and khat > UNRELIABLE_KHAT:
                return f"tail_khat_{side} is {khat:.2f}: above {UNRELIABLE_KHAT:g} a sample does not show the variance"
        largest = max(abs(self._low), abs(self._high))
        if tails and largest > schema.CLUSTER_CLIP:
            return f"a log ratio of {largest:.3g}: sums over sequences hold no more than {schema.CLUSTER_CLIP:g}"
        return None

    def _mean(self, value: float, of: _Mean) -> Found:
        unreliable = self._unreliable(of.tails)
        if unreliable is not None:
            return unreliable
        mean = (value - of.shift) / of.scale
        error = abs(of.scale) * self._clustered.standard_error(mean, of.term) * self._clustered.quantile
        if of.floor is None:
            return value - error, value + error
        least, most = _logarithmic(value - of.floor, error)
        return of.floor + least, of.floor + most

    def _ess_token(self) -> Found:
        """Delta method on 2 log(1 + x) - log(1 + 2 x + q), x and q the means of w - 1 and of (w - 1)^2: in these the
        variance keeps its digits where all weights are close to 1."""
        unreliable = self._unreliable(("upper",))
        if unreliable is not None:
            return unreliable
        clustered, mean = self._clustered, token_mean(self._summary)
        x, q = mean("excess_positive") - mean("excess_negative"), mean("excess_sq")
        excess, excess_cross = clustered.sums("excess")
        square, square_cross = clustered.sums("excess_sq")
        lengths = clustered.squared_lengths
        both = float(self._summary.cluster_extras[schema.CLUSTER_EXTRAS.index("ratio_ratio_sq")])
        # sum of (w)(w^2) per sequence is (T + X)(T + 2 X + Q).
        product = both - lengths - 3 * excess_cross - square_cross - 2 * excess
        of_x = clustered.residual(x, excess, excess_cross)
        of_q = clustered.residual(q, square, square_cross)
        most = math.sqrt(of_x) * math.sqrt(of_q)
        of_both = max(-most, min(most, product - x * square_cross - q * excess_cross + x * q * lengths))
        a, b = 1 + x, 1 + 2 * x + q
        if not (a > 0 and b > 0):
            return "not defined on these tokens"
        by_x, by_q = 2 / a - 2 / b, 1 / b
        error = clustered.spread(max(0.0, by_x * by_x * of_x + by_q * by_q * of_q - 2 * by_x * by_q * of_both))
        # The squared relative spread of the weights, 1 / ESS - 1, is what is skewed.
        spread = (q - x * x) / (a * a)
        least, most = _logarithmic(spread, (1 + spread) * error * clustered.quantile)
        return max(1 / self._summary.tokens, 1 / (1 + most)), 1 / (1 + least)

    def _tail(self, side: str, metric: str) -> Found:
        """k-hat +- t (1 + k) / sqrt(M) and Hill's estimate +- t H / sqrt(M), M what clustering leaves of the
        exceedances."""
        if side not in self._fits:
            self._fits[side] = pareto_fit(self._summary, side=side)
        fit = self._fits[side]
        if isinstance(fit, str):
            return fit
        level = fit.log_threshold if side == "upper" else -fit.log_threshold
        worth = fit.exceedances / self._clustered.design_effect_at(level)
        value = self._values[f"tail_{metric}_{side}"]
        error = self._clustered.quantile * (1 + value if metric == "khat" else value) / math.sqrt(worth)
        return value - error, value + error

    def _quantile(self, q: Fraction) -> Found:
        value = grid_quantile(self._summary.grid, q, bits=schema.TOKEN_BITS, low=self._low, high=self._high)
        effect = self._clustered.design_effect_at(value)
        return order_interval(
            self._summary.grid, q, bits=schema.TOKEN_BITS, low=self._low, high=self._high, effect=effect,
            quantile=self._clustered.quantile,
        )  # fmt: skip

    def _width(self, first: int, last: int) -> Found:
        """From the intervals of both its quantiles. Sequences that share a scale move both ends apart together, others
        do not: their errors are taken to correlate by a half."""
        ends = [self._bin_quantile(first, last, Fraction(percent, 100)) for percent in (2, 98)]
        unknown = next((found for _, found in ends if isinstance(found, str)), None)
        if unknown is not None:
            return unknown
        (p2, of_p2), (p98, of_p98) = ((value, found) for value, found in ends if not isinstance(found, str))
        inwards = _halfway(of_p2[1] - p2, p98 - of_p98[0])
        outwards = _halfway(p2 - of_p2[0], of_p98[1] - p98)
        return max(0.0, p98 - p2 - inwards), p98 - p2 + outwards

    def _bin_quantile(self, first: int, last: int, q: Fraction) -> tuple[float, Found]:
        value = bins_quantile(self._summary, first, last, q)
        return value, bin_interval(self._clustered, first, last, q)

    def _counted_share(self, name: str) -> Found:
        share, level = self._values[name], math.log(2 if name == "outside_2x" else 5)
        effect = self._clustered.design_effect(share, *self._clustered.sums(name))
        # Few tokens do not show how they go together: at least as others do.
        if min(share, 1 - share) * self._summary.tokens < MIN_BEYOND:
            effect = max(effect, self._clustered.design_effect_at(level))
        return self._wilson(name, effect)

    def _share(self, name: str, level: float) -> Found:
        return self._wilson(name, self._clustered.design_effect_at(level))

    def _wilson(self, name: str, effect: float) -> Found:
        return wilson(self._values[name], self._summary.tokens / effect, quantile=self._clustered.quantile)

    def _sequence_share(self, name: str) -> Found:
        count = self._summary.count("sequences_complete")
        return wilson(self._values[name], count, quantile=self._clustered.quantile)


def _halfway(a: float, b: float) -> float:
    """Size of the difference of two errors that correlate by minus a half."""
    return math.sqrt(a * a + b * b + a * b)


def _logarithmic(value: float, error: float) -> Interval:
    """Around the logarithm of what cannot be negative: its estimates are skewed, their logarithms less so."""
    if value <= 0:
        return 0.0, error
    reach = math.exp(min(error / value, LARGEST_LOG))
    return value / reach, value * reach


def _why_not(name: str) -> str:
    if METRICS[name].unit in {"tokens", "sequences", "versions"} or name.endswith(("_min", "_max")):
        return EXACT
    return _REASONS.get(name, NOT_KEPT)


def wilson(share: float, count: float, *, quantile: float) -> Interval:
    """Interval of a share of `count` independent units (Wilson, 1927); inside 0 .. 1 also where none or all count."""
    square = quantile * quantile / count
    if share in (0.0, 1.0):  # one end is exact, where rounding would leave it next to it
        return (0.0, square / (1 + square)) if share == 0 else (1 / (1 + square), 1.0)
    middle = (share + square / 2) / (1 + square)
    reach = quantile * math.sqrt((max(0.0, share * (1 - share)) + square / 4) / count) / (1 + square)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def order_interval(
    grid: Grid, q: Fraction, *, bits: int, low: float, high: float, effect: float, quantile: float
) -> Found:
    """Interval of a quantile between two order statistics (Woodruff, 1952).

    Args:
        grid: histogram of d.
        q: the probability.
        bits: mantissa bits of the grid.
        low: smallest d.
        high: largest d.
        effect: design effect of the share of tokens beyond it.
        quantile: of Student's t.
    """
    tokens = int(grid.counts.sum())
    reach = quantile * math.sqrt(float(q * (1 - q)) * effect * tokens)
    ranks = math.floor(float(q * tokens) - reach), math.ceil(float(q * tokens) + reach)
    if ranks[0] < 1 or ranks[1] > tokens:
        needed = math.ceil(quantile * quantile * float(max(q, 1 - q) / min(q, 1 - q)))
        return f"{tokens / effect:.0f} effective tokens, needs about {needed}"
    lower, upper = (grid_quantile(grid, Fraction(rank, tokens), bits=bits, low=low, high=high) for rank in ranks)
    return lower, upper


def bin_interval(clustered: Clustered, first: int, last: int, q: Fraction) -> Found:
    """Interval of a quantile of d over the probability bins first .. last - 1."""
    summary = clustered.summary
    grid = bins_grid(summary, first, last)
    tokens = int(grid.counts.sum())
    if tokens == 0:
        return "no tokens in this range of probability"
    low, high = bins_extremes(summary, first, last)
    # Minkowski: the root of a sum of squares of joined bins is at most the sum of the roots.
    roots = float(np.sqrt(summary.bin_cluster_sq[first:last]).sum())
    squared = min(roots * roots, clustered.squared_lengths)
    effect = clustered.design_effect_of(tokens, squared, bins_quantile(summary, first, last, q))
    return order_interval(grid, q, bits=schema.BIN_BITS, low=low, high=high, effect=effect, quantile=clustered.quantile)


@dataclass(frozen=True, slots=True)
class BinIntervals:
    """Intervals of the envelope in one bin, or why there is none."""

    p2: Found
    p50: Found
    p98: Found


def envelope_intervals(summary: Summary) -> list[BinIntervals]:
    """One per probability bin, as `envelope` gives them."""
    if summary.count("clusters") < 2:
        return [BinIntervals(ONE_SEQUENCE, ONE_SEQUENCE, ONE_SEQUENCE)] * schema.PROBABILITY_BINS
    clustered = Clustered(summary)
    return [
        BinIntervals(*(bin_interval(clustered, index, index + 1, Fraction(percent, 100)) for percent in (2, 50, 98)))
        for index in range(schema.PROBABILITY_BINS)
    ]
