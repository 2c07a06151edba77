"""What ess_length_residual falls to by chance alone, at the lengths of a step.

The null model: tokens that err independently with the variance that was measured, so that S of a sequence of T tokens
is normal with mean -T s^2/2 and variance T s^2. Lengths matter: of batches whose lengths differ up to sixty-fold, 3 to
28 % fell below the 1 % point of a table for equal lengths. The points are therefore those of draws at the step's own
lengths, the same normal numbers each time, of at most SEQUENCES sequences; what more sequences change comes from the
table of `ess_null`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.picks import uniform
from tailwatch_service.statistics import ess_null
from tailwatch_service.statistics.normal import normal_quantile
from tailwatch_service.statistics.values import NO_SEQUENCES, Value

Float64Array = NDArray[np.float64]

SEQUENCES = 256
REPLICATES = 1_000
MIN_SEQUENCES = ess_null.SEQUENCES[0]
_RANK = 10
"""The 1 % point is the mean of this order statistic of REPLICATES and the next."""


def ess_chance(summary: Summary) -> dict[str, Value]:
    """The 1 % and 0.1 % points of ess_length_residual."""
    names = ("ess_length_residual_p01", "ess_length_residual_p001")
    complete = summary.count("sequences_complete")
    if complete < MIN_SEQUENCES:
        return dict.fromkeys(
            names, f"{complete} complete sequences, needs {MIN_SEQUENCES}" if complete else NO_SEQUENCES
        )
    counts = summary.length_counts[summary.length_counts > 0]
    lengths = summary.length_sums[summary.length_counts > 0, schema.LENGTH_SUMS.index("T")] / counts
    variance = float(summary.log_ratio.m2) / summary.tokens
    point = chance_point(counts.tolist(), (lengths * variance).tolist())
    mean = float((counts * lengths).sum()) / complete * variance
    # How far the rarer point is from the more frequent one is taken from sequences of equal length.
    rarer = _log_table(ess_null.P001, complete, mean) / _log_table(ess_null.P01, complete, mean)
    return {names[0]: point, names[1]: math.exp(rarer * math.log(point))}


def chance_point(counts: Sequence[int], variances: Sequence[float]) -> float:
    """The 1 % point of the residual of sequences in buckets.

    Args:
        counts: sequences per bucket, at least one.
        variances: of S in each, nats squared.
    """
    total = sum(counts)
    drawn = [max(1, round(count * SEQUENCES / total)) for count in counts] if total > SEQUENCES else list(counts)
    spread = np.sqrt(np.repeat(np.minimum(variances, 1e6), drawn))
    centre = -spread * spread / 2
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in drawn])
    expected = _effective((centre + spread * normal_quantile(places))[None])
    residual = np.sort(_effective(centre + spread * _normals()[:, : len(spread)]) / expected)
    point = min(1.0, float(residual[_RANK - 1 : _RANK + 1].mean()))
    if total <= SEQUENCES:
        return point
    mean = float(np.average(variances, weights=counts))
    more = _log_table(ess_null.P01, total, mean) / _log_table(ess_null.P01, SEQUENCES, mean)
    return math.exp(more * math.log(point))


@lru_cache(maxsize=1)
def _normals() -> Float64Array:
    """[REPLICATES, SEQUENCES and as many more as there are buckets] the same on every machine."""
    shape = (REPLICATES, SEQUENCES + schema.LENGTH_BUCKETS)
    normals: Float64Array = normal_quantile(uniform(np.arange(math.prod(shape))) + 2.0**-54).reshape(shape)
    return normals


def _effective(log_weights: Float64Array) -> Float64Array:
    """[R] effective share of [R, n] weights e^x."""
    w = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    total = w.sum(axis=1)
    share: Float64Array = total * total / (w * w).sum(axis=1) / w.shape[1]
    return share


def _log_table(table: Sequence[Sequence[float]], sequences: int, variance: float) -> float:
    """Logarithm of a point for sequences of equal length, interpolated over the logarithms of both; beyond the table
    that of its edge."""
    counts, variances = np.log(ess_null.SEQUENCES), np.log(ess_null.VARIANCES)
    place = math.log(max(variance, ess_null.VARIANCES[0]))
    column = [float(np.interp(place, variances, np.log(row))) for row in table]
    return float(np.interp(math.log(sequences), counts, column))
