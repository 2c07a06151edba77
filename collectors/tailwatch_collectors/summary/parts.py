"""Parts: what a backend hands over, from which every summary is put together in the same way.

Shapes: B sequences, R buckets, K cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.clusters import Clusters
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.moments import CoMoments, Moments
from tailwatch_collectors.summary.picks import Picks
from tailwatch_collectors.summary.properties import Lags, advantage_sent
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.sequences import Sequences, sequence_statistics
from tailwatch_collectors.summary.slices import BucketStats, Slice
from tailwatch_collectors.summary.summary import Summary

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LagSums:
    """Known lags, counted by token and by sequence."""

    tokens: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    grid: Grid = field(default_factory=Grid.empty)
    sequences: int = 0
    oldest: float = 0.0
    """Sum over sequences of the largest lag in each."""

    @classmethod
    def of_sequences(cls, lag: Lags, count_B: Int64Array) -> LagSums:
        """From a lag per sequence and its valid tokens; empty where lags are unknown."""
        if lag.lag_B is None:
            return cls()
        found = cls.of_counts(lag.lag_B, count_B)
        known = (lag.lag_B >= 0) & (count_B > 0)
        return found.with_oldest(lag.lag_B[known])

    def with_oldest(self, oldest_K: NDArray[np.integer]) -> LagSums:
        """With the largest lag of each sequence that has a known one."""
        return replace(self, sequences=len(oldest_K), oldest=float(oldest_K.astype(np.float64).sum()))

    @classmethod
    def of_counts(cls, lag: Int64Array, count: Int64Array) -> LagSums:
        """From lags and how many tokens have each; by token alone."""
        known = (lag >= 0) & (count > 0)
        lag_K, count_K = lag[known], count[known]
        if len(lag_K) == 0:
            return cls()
        # Versions may be anything up to 2^53: their sum is taken where it cannot wrap.
        total = float((lag_K.astype(np.float64) * count_K).sum())
        grid = Grid.of_keys(np.minimum(lag_K, schema.MAX_LAG_CELL), count_K[:, None])
        return cls(int(count_K.sum()), total, float(lag_K.min()), float(lag_K.max()), grid)


@dataclass(frozen=True, slots=True)
class Buckets:
    """One property's buckets."""

    labels: tuple[str, ...]
    stats: BucketStats
    """[R]"""
    octaves: NDArray[np.integer]
    """[R, OCTAVES]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Everything that is counted or summed over the tokens of a batch."""

    counters: Mapping[str, int]
    """COUNTERS, but those of the sequence statistics, of lags and of rewards."""
    sums: Mapping[str, float]
    """TOKEN_SUMS, but `reward`, `lag` and `lag_oldest`."""
    above: Int64Array
    below: Int64Array
    scaled: ScaledSums
    low: float
    """Smallest d; inf where there is none."""
    high: float
    prob_diff_max: float
    log_ratio: Moments
    prob_diff: Moments
    probs: CoMoments
    score_residual: Moments
    sign_grid: NDArray[np.integer]
    """[signs * cells] dense."""
    bin_grid: NDArray[np.integer]
    """[bins * cells] dense."""
    bins: BucketStats
    buckets: Mapping[str, Buckets]
    """By name of the slice."""
    lag: LagSums
    clusters: Clusters
    bin_sq: Float64Array
    exceed: Float64Array
    """[2, EXCEED_EXPONENTS, EXCEED_SUMS]"""
    complete_B: NDArray[np.bool_]
    sign_B: Int64Array
    """[B] sign of the advantage where the sequence's tokens share it, else unknown."""
    align: Float64Array
    worst_upper: Picks
    worst_lower: Picks
    sample: Picks


def assemble(batch: Batch, parts: Parts) -> Summary:
    """The summary of a batch."""
    sequences = sequence_statistics(_complete(parts))
    rewards = np.empty(0) if batch.reward_B is None else batch.reward_B[np.isfinite(batch.reward_B)].astype(np.float64)
    counters = {
        **parts.counters,
        "tokens_lag_known": parts.lag.tokens,
        "sequences_lag_known": parts.lag.sequences,
        "sequences_complete": int(np.count_nonzero(parts.complete_B)),
        "sequences_outside_2x": sequences.outside_2x,
        "sequences_outside_5x": sequences.outside_5x,
        "sequences_geometric_outside": sequences.geometric_outside,
        "rewards": len(rewards),
    }
    sums = {**parts.sums, "reward": float(rewards.sum()), "lag": parts.lag.total, "lag_oldest": parts.lag.oldest}
    minima = {"log_ratio": parts.low, "log_ppl_gap": sequences.gap_min, "lag": parts.lag.low}
    maxima = {
        "log_ratio": parts.high,
        "prob_diff_abs": parts.prob_diff_max,
        "log_ppl_gap": sequences.gap_max,
        "lag": parts.lag.high,
    }
    return Summary(
        counters=np.array([counters[name] for name in schema.COUNTERS], np.int64),
        above=parts.above,
        below=parts.below,
        token_sums=np.array([sums[name] for name in schema.TOKEN_SUMS]) + 0.0,
        token_scaled=parts.scaled,
        minima=np.array([minima[name] for name in schema.MINIMA]) + 0.0,
        maxima=np.array([maxima[name] for name in schema.MAXIMA]) + 0.0,
        log_ratio=parts.log_ratio,
        prob_diff=parts.prob_diff,
        probs=parts.probs,
        score_residual=parts.score_residual,
        sign_grid=Grid.of_dense(parts.sign_grid),
        bin_grid=Grid.of_dense(parts.bin_grid),
        bins=parts.bins,
        bin_cluster_sq=parts.bin_sq,
        cluster_sums=parts.clusters.sums,
        cluster_extras=parts.clusters.extras,
        exceed_upper=parts.exceed[0],
        exceed_lower=parts.exceed[1],
        slices=_slices(batch, parts),
        lag_grid=parts.lag.grid,
        sequence_sums=sequences.sums,
        sequence_scaled=sequences.scaled,
        sequence_grid=sequences.grid,
        length_counts=sequences.length_counts,
        length_sums=sequences.length_sums,
        align=parts.align,
        worst_upper=parts.worst_upper,
        worst_lower=parts.worst_lower,
        sample=parts.sample,
    )


def _complete(parts: Parts) -> Sequences:
    """The complete sequences."""
    complete, clusters = parts.complete_B, parts.clusters
    return Sequences(
        T_C=clusters.tokens_B[complete].astype(np.int64),
        S_C=clusters.term("log_ratio")[complete],
        min_C=clusters.min_B[complete],
        max_C=clusters.max_B[complete],
        infer_C=clusters.term("infer_logprob")[complete],
        train_C=clusters.term("train_logprob")[complete],
        sign_C=parts.sign_B[complete],
    )


def _slices(batch: Batch, parts: Parts) -> dict[str, Slice]:
    """Slices that hold a token, in order of name; by advantage only where one was sent."""
    if parts.counters["tokens"] == 0:
        return {}
    return {
        name: Slice.of(of.labels, of.stats, of.octaves, limit=schema.SLICE_LIMITS[name])
        for name, of in sorted(parts.buckets.items())
        if name != "advantage" or advantage_sent(batch)
    }
