"""Centred moments that merge: count, mean, and sums of squared deviations (Chan, Golub & LeVeque 1979).

Centred, because a sum of squares loses the spread of values that share a large offset. Merging is bitwise
commutative: every expression is symmetric in its two sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and centred second moment of a variable, any shape of buckets."""

    n: NDArray[np.int64]
    mean: Float64Array
    m2: Float64Array

    @classmethod
    def zeros(cls, *shape: int) -> Moments:
        """No value seen; the identity of `merge`."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values."""
        n = self.n + other.n
        share = _share(self.n, other.n, n)
        delta = other.mean - self.mean
        mean = _pooled(self.n, self.mean, other.n, other.mean, n)
        return Moments(n, mean, self.m2 + other.m2 + delta * delta * share)


@dataclass(frozen=True, slots=True, eq=False)
class CoMoments:
    """Count, means, centred second moments and centred co-moment of a pair of variables; scalars as 0-d arrays."""

    n: NDArray[np.int64]
    mean_x: Float64Array
    mean_y: Float64Array
    m2_x: Float64Array
    m2_y: Float64Array
    c_xy: Float64Array

    @classmethod
    def zeros(cls) -> CoMoments:
        """No pair seen; the identity of `merge`."""
        return cls(np.zeros((), np.int64), *(np.zeros(()) for _ in range(5)))

    @classmethod
    def of(cls, x: Float64Array, y: Float64Array) -> CoMoments:
        """Of all pairs, two passes."""
        if len(x) == 0:
            return cls.zeros()
        mean_x, mean_y = x.mean(), y.mean()
        dx, dy = x - mean_x, y - mean_y
        sums = ((dx * dx).sum(), (dy * dy).sum(), (dx * dy).sum())
        return cls(np.array(len(x)), np.array(mean_x), np.array(mean_y), *(np.array(s) for s in sums))

    def merge(self, other: CoMoments) -> CoMoments:
        """Moments of both sets of pairs."""
        n = self.n + other.n
        share = _share(self.n, other.n, n)
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return CoMoments(
            n,
            _pooled(self.n, self.mean_x, other.n, other.mean_x, n),
            _pooled(self.n, self.mean_y, other.n, other.mean_y, n),
            self.m2_x + other.m2_x + dx * dx * share,
            self.m2_y + other.m2_y + dy * dy * share,
            self.c_xy + other.c_xy + dx * dy * share,
        )


def moments_of(x: Float64Array) -> Moments:
    """Moments of all values as one bucket, 0-d."""
    if len(x) == 0:
        return Moments.zeros()
    mean = x.mean()
    deviation = x - mean
    return Moments(np.array(len(x)), np.array(mean), np.array((deviation * deviation).sum()))


def moments_by_bucket(x: Float64Array, bucket: NDArray[np.intp], *, buckets: int) -> Moments:
    """Moments of `x` within each bucket, [buckets]."""
    n = np.bincount(bucket, minlength=buckets)
    mean = np.bincount(bucket, weights=x, minlength=buckets) / np.maximum(n, 1)
    deviation = x - mean[bucket]
    m2: Float64Array = np.bincount(bucket, weights=deviation * deviation, minlength=buckets).astype(np.float64)
    return Moments(n.astype(np.int64), mean, m2)


def _share(a: NDArray[np.int64], b: NDArray[np.int64], n: NDArray[np.int64]) -> Float64Array:
    """n_a n_b / n; 0 where both are empty."""
    return (a.astype(np.float64) * b) / np.maximum(n, 1)


def _pooled(
    a: NDArray[np.int64], mean_a: Float64Array, b: NDArray[np.int64], mean_b: Float64Array, n: NDArray[np.int64]
) -> Float64Array:
    """Mean of both sides; exactly the one side's where the other is empty, so that zero is an identity."""
    pooled = (a * mean_a + b * mean_b) / np.maximum(n, 1)
    return np.where(a == 0, mean_b, np.where(b == 0, mean_a, pooled))
