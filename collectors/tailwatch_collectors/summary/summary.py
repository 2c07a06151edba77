"""Summary: the mergeable sufficient statistics of a batch, a step, a window.

`merge` is commutative and associative with `Summary.empty()` as identity: counts, grids, extremes and worst tokens
exactly, float sums bitwise commutative and associative to rounding. A step is the merge of its batches in (rank,
part) order, so it is bit-identical whatever order they arrived in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.moments import CoMoments, Moments
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.worst import Worst

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Token statistics per bucket, R buckets."""

    counts_RC: Int64Array
    """[R, SLICE_COUNTS]"""
    sums_RQ: Float64Array
    """[R, SLICE_SUMS]"""
    log_ratio_R: Moments
    k3_R: ScaledSums
    min_R: Float64Array
    """Smallest d; inf in an empty bucket."""
    max_R: Float64Array
    """Largest d; -inf in an empty bucket."""

    @classmethod
    def empty(cls, buckets: int) -> Slice:
        """Empty buckets; the identity of `merge`."""
        return cls(
            np.zeros((buckets, len(schema.SLICE_COUNTS)), np.int64),
            np.zeros((buckets, len(schema.SLICE_SUMS))),
            Moments.zeros(buckets),
            ScaledSums.zeros(buckets),
            np.full(buckets, np.inf),
            np.full(buckets, -np.inf),
        )

    def pooled(self, bucket: int, *, buckets: int) -> Slice:
        """All tokens as one bucket of another partition, which holds them all."""
        pooled = Slice.empty(1)
        for index in range(len(self.min_R)):
            pooled = pooled.merge(self._rows(slice(index, index + 1)))
        spread = Slice.empty(buckets)
        for mine, theirs in zip(spread._arrays(), pooled._arrays(), strict=True):
            mine[bucket] = theirs[0]
        return spread

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        moments, k3 = self.log_ratio_R, self.k3_R
        counts, sums = self.counts_RC, self.sums_RQ
        return counts, sums, moments.n, moments.mean, moments.m2, k3.mantissa, k3.exponent, self.min_R, self.max_R

    def _rows(self, rows: slice) -> Slice:
        counts, sums, n, mean, m2, mantissa, exponent, low, high = (array[rows] for array in self._arrays())
        return Slice(counts, sums, Moments(n, mean, m2), ScaledSums(mantissa, exponent), low, high)

    def merge(self, other: Slice) -> Slice:
        """Bucket by bucket."""
        return Slice(
            self.counts_RC + other.counts_RC,
            self.sums_RQ + other.sums_RQ,
            self.log_ratio_R.merge(other.log_ratio_R),
            self.k3_R.merge(other.k3_R),
            np.minimum(self.min_R, other.min_R),
            np.maximum(self.max_R, other.max_R),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """Everything the metrics are computed from. Vectors are in the order of `schema`; d is the log ratio."""

    counters: Int64Array
    """[COUNTERS]"""
    above: Int64Array
    """[RATIO_THRESHOLDS] tokens with w > C."""
    below: Int64Array
    """[RATIO_THRESHOLDS] tokens with w < 1/C."""
    token_sums: Float64Array
    """[TOKEN_SUMS]"""
    token_scaled: ScaledSums
    """[TOKEN_SCALED]"""
    minima: Float64Array
    """[MINIMA], inf where empty."""
    maxima: Float64Array
    """[MAXIMA], -inf where empty."""
    log_ratio: Moments
    """0-d moments of d."""
    prob_diff: Moments
    """0-d moments of |p_train - p_infer|."""
    probs: CoMoments
    """Of (p_train, p_infer)."""
    grid: Grid
    """Histogram of d, TOKEN_BITS."""
    bin_grid: Grid
    """Histogram of d per probability bin, BIN_BITS; key = bin * cells + cell."""
    bins: Slice
    """By inference probability."""
    lags: Slice
    """By policy lag, LAG_LABELS."""
    lag_grid: Grid
    """Tokens per lag in versions, capped at MAX_LAG_CELL."""
    sequence_sums: Float64Array
    """[SEQUENCE_SUMS] over complete sequences."""
    sequence_scaled: ScaledSums
    """[SEQUENCE_SCALED] over complete sequences."""
    sequence_grid: Grid
    """Histograms of SEQUENCE_GRIDS by sign of the advantage; key = (grid * signs + sign) * cells + cell; two
    counts: sequences, tokens."""
    length_counts: Int64Array
    """[LENGTH_BUCKETS] complete sequences by floor(log2 T)."""
    length_sums: Float64Array
    """[LENGTH_BUCKETS, LENGTH_SUMS]"""
    align: Float64Array
    """[ALIGN_SHIFTS, ALIGN_SUMS]"""
    worst_upper: Worst
    worst_lower: Worst

    @classmethod
    def empty(cls) -> Summary:
        """The identity of `merge`."""
        return cls(
            counters=np.zeros(len(schema.COUNTERS), np.int64),
            above=np.zeros(len(schema.RATIO_THRESHOLDS), np.int64),
            below=np.zeros(len(schema.RATIO_THRESHOLDS), np.int64),
            token_sums=np.zeros(len(schema.TOKEN_SUMS)),
            token_scaled=ScaledSums.zeros(len(schema.TOKEN_SCALED)),
            minima=np.full(len(schema.MINIMA), np.inf),
            maxima=np.full(len(schema.MAXIMA), -np.inf),
            log_ratio=Moments.zeros(),
            prob_diff=Moments.zeros(),
            probs=CoMoments.zeros(),
            grid=Grid.empty(),
            bin_grid=Grid.empty(),
            bins=Slice.empty(schema.PROBABILITY_BINS),
            lags=Slice.empty(len(schema.LAG_LABELS)),
            lag_grid=Grid.empty(),
            sequence_sums=np.zeros(len(schema.SEQUENCE_SUMS)),
            sequence_scaled=ScaledSums.zeros(len(schema.SEQUENCE_SCALED)),
            sequence_grid=Grid.empty(2),
            length_counts=np.zeros(schema.LENGTH_BUCKETS, np.int64),
            length_sums=np.zeros((schema.LENGTH_BUCKETS, len(schema.LENGTH_SUMS))),
            align=np.zeros((len(schema.ALIGN_SHIFTS), len(schema.ALIGN_SUMS))),
            worst_upper=Worst.empty(),
            worst_lower=Worst.empty(),
        )

    def merge(self, other: Summary) -> Summary:
        """The summary of both sets of tokens."""
        merged = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "minima":
                merged[field.name] = np.minimum(mine, theirs)
            elif field.name == "maxima":
                merged[field.name] = np.maximum(mine, theirs)
            elif isinstance(mine, np.ndarray):
                merged[field.name] = mine + theirs
            else:
                merged[field.name] = mine.merge(theirs)
        return Summary(**merged)

    def count(self, name: str) -> int:
        """One of COUNTERS."""
        return int(self.counters[schema.COUNTERS.index(name)])

    def token_sum(self, name: str) -> float:
        """One of TOKEN_SUMS."""
        return float(self.token_sums[schema.TOKEN_SUMS.index(name)])

    @property
    def tokens(self) -> int:
        """Tokens counted: in the mask and valid."""
        return self.count("tokens")

    @property
    def sequences(self) -> int:
        """Sequences with at least one token in the mask."""
        return self.count("sequences")


def merge(summaries: Iterable[Summary]) -> Summary:
    """Merge in the given order; the empty summary where there is none."""
    merged: Summary | None = None
    for summary in summaries:
        merged = summary if merged is None else merged.merge(summary)
    return Summary.empty() if merged is None else merged
