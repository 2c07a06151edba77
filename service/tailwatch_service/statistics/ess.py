"""Effective sample sizes, from unclamped weights, and what sequence length alone would make of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.scaled import ScaledSums, sum_exp
from tailwatch_service.statistics.normal import normal_quantile
from tailwatch_service.statistics.values import NO_SEQUENCES, NO_TOKENS, Value


def ess(summary: Summary) -> dict[str, Value]:
    """ESS over tokens and sequences, and the sequence ESS that independent noise of the same spread would give."""
    complete = summary.count("sequences_complete")
    of_tokens = (schema.TOKEN_SCALED.index("ratio"), schema.TOKEN_SCALED.index("ratio_sq"))
    of_sequences = (schema.SEQUENCE_SCALED.index("ratio"), schema.SEQUENCE_SCALED.index("ratio_sq"))
    token = _ess(summary.token_scaled, *of_tokens, summary.tokens)
    sequence = _ess(summary.sequence_scaled, *of_sequences, complete)
    expected = _expected(summary) if complete else math.nan
    return {
        "ess_token": token if summary.tokens else NO_TOKENS,
        "ess_sequence": sequence if complete else NO_SEQUENCES,
        "ess_sequence_expected": expected if complete else NO_SEQUENCES,
        "ess_length_residual": sequence / expected if complete else NO_SEQUENCES,
    }


def _ess(sums: ScaledSums, first: int, second: int, count: int) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1]; from logarithms, so that it exists for any weights."""
    if count == 0:
        return math.nan
    log_ess = 2 * sums.log(first) - sums.log(second) - math.log(count)
    return min(1.0, max(1.0 / count, math.exp(log_ess)))


def _expected(summary: Summary) -> float:
    """ESS of the pooled values -T_b s^2/2 + sqrt(T_b) s z_j, z_j the normal quantiles, s^2 = Var d."""
    variance = float(summary.log_ratio.m2) / summary.tokens
    pooled: list[NDArray[np.float64]] = []
    for bucket in np.flatnonzero(summary.length_counts):
        count = int(summary.length_counts[bucket])
        length = float(summary.length_sums[bucket, schema.LENGTH_SUMS.index("T")]) / count
        z = normal_quantile((np.arange(count) + 0.5) / count)
        pooled.append(-length * variance / 2 + math.sqrt(length * variance) * z)
    S = np.concatenate(pooled)
    return _ess(sum_exp(np.stack((S, 2 * S))), 0, 1, len(S))
