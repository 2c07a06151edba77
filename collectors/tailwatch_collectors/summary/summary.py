"""Summary: the mergeable sufficient statistics of a batch, a step, a window.

`merge` is commutative and associative with `Summary.empty()` as identity: counts, grids, extremes and worst tokens
exactly, float sums bitwise commutative and associative to rounding. A step is the merge of its batches in (rank,
part) order, so it is bit-identical whatever order they arrived in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count, sequence_offset
from tailwatch_collectors.summary.moments import CoMoments, Moments
from tailwatch_collectors.summary.picks import Picks
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.slices import BucketStats, Slice, merge_slices

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]


_PICKS = {"worst_upper": schema.WORST_TOKENS, "worst_lower": schema.WORST_TOKENS, "sample": schema.SAMPLE_TOKENS}
_AT_ONCE = 16
"""Summaries that are in memory together while many are merged."""


@dataclass(frozen=True, kw_only=True, eq=False)
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
    score_residual: Moments
    """0-d moments of d over the norm of the token's score, where sum_p2_other was sent."""
    sign_grid: Grid
    """Histogram of d by sign of the advantage, TOKEN_BITS; key = sign * cells + cell."""
    bin_grid: Grid
    """Histogram of d per probability bin, BIN_BITS; key = bin * cells + cell."""
    bins: BucketStats
    """[PROBABILITY_BINS] by inference probability."""
    bin_cluster_sq: Float64Array
    """[PROBABILITY_BINS] sum over sequences of the square of their tokens in the bin."""
    cluster_sums: Float64Array
    """[CLUSTER_TERMS, CLUSTER_SUMS] over sequences with a valid token."""
    cluster_extras: Float64Array
    """[CLUSTER_EXTRAS]"""
    exceed_upper: Float64Array
    """[EXCEED_EXPONENTS, EXCEED_SUMS] of the tokens n of a sequence with d >= 2^k."""
    exceed_lower: Float64Array
    """[EXCEED_EXPONENTS, EXCEED_SUMS] of those with d <= -2^k."""
    slices: Mapping[str, Slice]
    """By name, in order of name; `lag`, `position` and `rank` hold every token, others those that carry it."""
    lag_grid: Grid
    """Tokens per lag in versions, capped at MAX_LAG_CELL."""
    sequence_sums: Float64Array
    """[SEQUENCE_SUMS] over complete sequences."""
    sequence_scaled: ScaledSums
    """[SEQUENCE_SCALED] over complete sequences."""
    sequence_grid: Grid
    """Histograms of SEQUENCE_GRIDS by sign of the advantage; key = sequence_offset(name, sign) + cell; two
    counts: sequences, tokens."""
    length_counts: Int64Array
    """[LENGTH_BUCKETS] complete sequences by floor(log2 T)."""
    length_sums: Float64Array
    """[LENGTH_BUCKETS, LENGTH_SUMS]"""
    align: Float64Array
    """[ALIGN_SHIFTS, ALIGN_SUMS]"""
    worst_upper: Picks
    worst_lower: Picks
    sample: Picks
    """A uniform random sample of tokens, where one was asked for."""

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
            score_residual=Moments.zeros(),
            sign_grid=Grid.empty(),
            bin_grid=Grid.empty(),
            bins=BucketStats.empty(schema.PROBABILITY_BINS),
            bin_cluster_sq=np.zeros(schema.PROBABILITY_BINS),
            cluster_sums=np.zeros((len(schema.CLUSTER_TERMS), len(schema.CLUSTER_SUMS))),
            cluster_extras=np.zeros(len(schema.CLUSTER_EXTRAS)),
            exceed_upper=np.zeros((len(schema.EXCEED_EXPONENTS), len(schema.EXCEED_SUMS))),
            exceed_lower=np.zeros((len(schema.EXCEED_EXPONENTS), len(schema.EXCEED_SUMS))),
            slices={},
            lag_grid=Grid.empty(),
            sequence_sums=np.zeros(len(schema.SEQUENCE_SUMS)),
            sequence_scaled=ScaledSums.zeros(len(schema.SEQUENCE_SCALED)),
            sequence_grid=Grid.empty(2),
            length_counts=np.zeros(schema.LENGTH_BUCKETS, np.int64),
            length_sums=np.zeros((schema.LENGTH_BUCKETS, len(schema.LENGTH_SUMS))),
            align=np.zeros((len(schema.ALIGN_SHIFTS), len(schema.ALIGN_SUMS))),
            worst_upper=Picks.empty(),
            worst_lower=Picks.empty(),
            sample=Picks.empty(),
        )

    def merge(self, *others: Summary) -> Summary:
        """The summary of all sets of tokens; float sums are added up in the order given."""
        merged: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            mine = getattr(self, name)
            theirs = [getattr(other, name) for other in others]
            if name == "minima":
                merged[name] = reduce(np.minimum, theirs, mine)
            elif name == "maxima":
                merged[name] = reduce(np.maximum, theirs, mine)
            elif name == "slices":
                merged[name] = reduce(merge_slices, theirs, mine)
            elif name in _PICKS:
                merged[name] = mine.merge(*theirs, limit=_PICKS[name])
            elif isinstance(mine, Grid):
                merged[name] = mine.merge(*theirs)
            elif isinstance(mine, np.ndarray):
                merged[name] = reduce(np.add, theirs, mine)
            else:
                merged[name] = reduce(type(mine).merge, theirs, mine)
        return Summary(**merged)

    @cached_property
    def grid(self) -> Grid:
        """Histogram of d over all tokens, TOKEN_BITS."""
        size = cell_count(schema.TOKEN_BITS)
        first, *others = (self.sign_grid.part(sign, size=size) for sign in range(len(schema.ADVANTAGE_SIGNS)))
        return first.merge(*others)

    def sequence_part(self, name: str, sign: int) -> Grid:
        """Histogram of one of SEQUENCE_GRIDS, SEQUENCE_BITS[name], for one sign of the advantage."""
        return self.sequence_grid.span(sequence_offset(name, sign), sequence_offset(name, sign + 1))

    def bucket(self, name: str, label: str) -> BucketStats:
        """[1] one bucket of a slice; an empty one where no token fell into it."""
        found = self.slices[name].bucket(label) if name in self.slices else None
        return BucketStats.empty(1) if found is None else found

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
    rest = iter(summaries)
    merged = next(rest, None)
    if merged is None:
        return Summary.empty()
    while group := tuple(islice(rest, _AT_ONCE)):
        merged = merged.merge(*group)
    return merged
