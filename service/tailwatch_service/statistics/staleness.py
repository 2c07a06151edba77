"""Mismatch against staleness: how much of it tokens at policy lag 0 have too, and what each version adds.

Known lags only. A bucket of several versions ('3-4', '17+') stands at the mean lag of its own tokens, which the
histogram of lags tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.scaled import ScaledSums
from tailwatch_collectors.summary.slices import BucketStats
from tailwatch_service.statistics.values import NO_TOKENS, NO_VERSIONS, Value, finite, ratio, scaled_mean

Float64Array = NDArray[np.float64]

MIN_TOKENS = 200
"""Tokens at lag 0 from which their mean is read, where others lag."""

ALL_AT_ZERO = "every token is at lag 0: nothing is stale"
NONE_AT_ZERO = "no token is at lag 0"
_OUTSIDE_2X = schema.SLICE_COUNTS.index("outside_2x")


@dataclass(frozen=True, slots=True)
class _Bucket:
    """One occupied bucket of known lag."""

    lag: float
    """Mean over its tokens, versions."""
    tokens: int
    stats: BucketStats
    """[1]"""


def staleness(summary: Summary) -> dict[str, Value]:
    """Lag itself, and the parts of kl_k3 and of outside_2x."""
    known = summary.count("tokens_lag_known")
    found: dict[str, Value] = {
        "lag_mean": ratio(summary.token_sum("lag"), known, NO_VERSIONS),
        "lag_oldest_mean": ratio(summary.token_sum("lag_oldest"), summary.count("sequences_lag_known"), NO_VERSIONS),
        "lag_max": float(summary.maxima[schema.MAXIMA.index("lag")]) if known else NO_VERSIONS,
        "lag_p95": _lag_quantile(summary) if known else NO_VERSIONS,
        "lag_negative_share": ratio(int(summary.bucket("lag", "negative").counts_RC[0, 0]), summary.tokens, NO_TOKENS),
    }
    buckets = _buckets(summary)
    for name, mean in (("kl_k3", _k3), ("outside_2x", _outside_2x)):
        found |= _parts(name, buckets, mean)
    return found


def _parts(name: str, buckets: list[_Bucket], mean: Callable[[list[_Bucket]], float]) -> dict[str, Value]:
    names = [f"{name}_{part}" for part in ("lag0", "per_version", "lag0_share", "stale_share")]
    if not buckets:
        return dict.fromkeys(names, NO_VERSIONS)
    at_zero = _at_zero(buckets)
    here: Value = at_zero if isinstance(at_zero, str) else finite(mean([at_zero]))
    share = _stale_share(here, buckets, mean)
    floor: Value = share if isinstance(share, str) else 1 - share
    return dict(zip(names, (here, _slope(buckets, mean), floor, share), strict=True))


def _at_zero(buckets: list[_Bucket]) -> _Bucket | str:
    first = buckets[0]
    if first.lag > 0:
        return NONE_AT_ZERO
    if len(buckets) > 1 and first.tokens < MIN_TOKENS:
        return f"{first.tokens} tokens at lag 0 among others, needs {MIN_TOKENS}"
    return first


def _stale_share(here: Value, buckets: list[_Bucket], mean: Callable[[list[_Bucket]], float]) -> Value:
    """1 - (value at lag 0) / (value over all known lags)."""
    if isinstance(here, str):
        return here
    if len(buckets) == 1:
        return ALL_AT_ZERO
    whole = mean(buckets)
    return finite(1 - here / whole) if whole > 0 else "no token contributes to it"


def _slope(buckets: list[_Bucket], mean: Callable[[list[_Bucket]], float]) -> Value:
    """Weighted least squares of the buckets' values on their mean lag, weights their tokens."""
    if len(buckets) == 1:
        return "all tokens share one bucket of lag"
    n, x, y = (
        np.array(column, np.float64)
        for column in zip(*((bucket.tokens, bucket.lag, mean([bucket])) for bucket in buckets), strict=True)
    )
    if not np.isfinite(y).all():
        return "exceeds float64"
    centred = x - (n * x).sum() / n.sum()
    return finite(float((n * centred * y).sum() / (n * centred * centred).sum()))


def _k3(buckets: list[_Bucket]) -> float:
    total = ScaledSums.zeros(1)
    for bucket in buckets:
        total = total.merge(bucket.stats.k3_R)
    return scaled_mean(total, 0, sum(bucket.tokens for bucket in buckets))


def _outside_2x(buckets: list[_Bucket]) -> float:
    outside = sum(int(bucket.stats.counts_RC[0, _OUTSIDE_2X]) for bucket in buckets)
    return outside / sum(bucket.tokens for bucket in buckets)


def _buckets(summary: Summary) -> list[_Bucket]:
    """The occupied buckets of known lag, ascending."""
    lags, counts = summary.lag_grid.keys, summary.lag_grid.counts[:, 0].astype(np.float64)
    ends = [*schema.LAG_EDGES[1:].tolist(), math.inf]
    found = []
    for label, start, end in zip(schema.LAG_LABELS, schema.LAG_EDGES.tolist(), ends, strict=False):
        stats = summary.bucket("lag", label)
        tokens = int(stats.counts_RC[0, 0])
        inside = (lags >= start) & (lags < end)
        # The two are counted apart: a summary from elsewhere may have one without the other.
        if tokens and inside.any():
            mean = float((lags[inside] * counts[inside]).sum() / counts[inside].sum())
            found.append(_Bucket(mean, tokens, stats))
    return found


def _lag_quantile(summary: Summary) -> float:
    counts = summary.lag_grid.counts[:, 0]
    rank = -(-95 * int(counts.sum()) // 100)
    return float(summary.lag_grid.keys[int(np.searchsorted(np.cumsum(counts), rank))])
