"""Effective sample sizes, from unclamped weights, and what sequence length alone would make of them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_service.statistics.normal import normal_quantile
from tailwatch_service.statistics.values import NO_SEQUENCES, NO_TOKENS, Value

_PIECE = 65_536
"""Sequences weighed at once: a window may hold millions."""
_REMEMBERED = 1_024
"""Largest bucket whose normal quantiles are remembered: 2 MB at most in all."""


def ess(summary: Summary) -> dict[str, Value]:
    """ESS over tokens and sequences, and the sequence ESS that independent noise of the same spread would give."""
    complete = summary.count("sequences_complete")
    sequence = ess_sequence(summary)
    expected = _expected(summary) if complete else math.nan
    return {
        "ess_token": ess_token(summary) if summary.tokens else NO_TOKENS,
        "ess_sequence": sequence if complete else NO_SEQUENCES,
        "ess_sequence_expected": expected if complete else NO_SEQUENCES,
        "ess_length_residual": sequence / expected if complete else NO_SEQUENCES,
    }


def ess_token(summary: Summary) -> float:
    """Over tokens; NaN where there are none."""
    first, second = (schema.TOKEN_SCALED.index(name) for name in ("ratio", "ratio_sq"))
    return _ess(summary.token_scaled, first, second, summary.tokens)


def ess_sequence(summary: Summary) -> float:
    """Over complete sequences; NaN where there are none."""
    first, second = (schema.SEQUENCE_SCALED.index(name) for name in ("ratio", "ratio_sq"))
    return _ess(summary.sequence_scaled, first, second, summary.count("sequences_complete"))


def _ess(sums: ScaledSums, first: int, second: int, count: int) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1]; exponents cancel as integers, so that it exists for any weights."""
    if count == 0:
        return math.nan
    share = float(sums.mantissa[first]) ** 2 / float(sums.mantissa[second]) / count
    # (sum w)^2 <= n sum w^2 bounds what is left of the exponents.
    power = max(-1_000, min(1_000, 2 * int(sums.exponent[first]) - int(sums.exponent[second])))
    return min(1.0, max(1.0 / count, math.ldexp(share, power)))


def _expected(summary: Summary) -> float:
    """ESS of the pooled values -T_b s^2/2 + sqrt(T_b) s z_j, z_j the normal quantiles, s^2 = Var d."""
    variance = float(summary.log_ratio.m2) / summary.tokens
    buckets = []
    for bucket in np.flatnonzero(summary.length_counts):
        count = int(summary.length_counts[bucket])
        length = float(summary.length_sums[bucket, schema.LENGTH_SUMS.index("T")]) / count
        buckets.append((count, -length * variance / 2, math.sqrt(length * variance)))
    largest = max(centre + spread * float(_scores(count - 1, count, count)[0]) for count, centre, spread in buckets)
    total = square = 0.0
    for count, centre, spread in buckets:
        for start in range(0, count, _PIECE):
            w = np.exp(centre + spread * _scores(start, min(start + _PIECE, count), count) - largest)
            total += float(w.sum())
            square += float((w * w).sum())
    return total * total / square / summary.count("sequences_complete")


def _scores(start: int, end: int, count: int) -> NDArray[np.float64]:
    """Normal quantiles of (j - 1/2) / count for the ranks j in start + 1 .. end."""
    if count <= _REMEMBERED:
        return _all_scores(count)[start:end]
    return normal_quantile((np.arange(start, end) + 0.5) / count)


@lru_cache(maxsize=256)
def _all_scores(count: int) -> NDArray[np.float64]:
    """All of them: batches of a run have buckets of the same few sizes again and again."""
    scores = normal_quantile((np.arange(count) + 0.5) / count)
    scores.flags.writeable = False
    return scores
