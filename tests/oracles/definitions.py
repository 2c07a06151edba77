"""Every metric that is a sum, straight from its definition, in numbers long enough to be naive.

The same lines run on mpmath numbers (50 digits, small data) and on numpy's long doubles (large data).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch

mpmath.mp.dps = 50
THRESHOLDS = (1.05, 1.1, 1.2, 1.28, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 100.0)


@dataclass(frozen=True)
class Arithmetic:
    """Long numbers and the functions on arrays of them."""

    number: Callable[[NDArray[np.float64]], NDArray[Any]]
    exp: Callable[[Any], Any]
    expm1: Callable[[Any], Any]
    log: Callable[[Any], Any]
    log1p: Callable[[Any], Any]


def _mpf(values: NDArray[np.float64]) -> NDArray[Any]:
    return np.array([mpmath.mpf(float(v)) for v in values], dtype=object)


MPMATH = Arithmetic(
    number=_mpf,
    exp=np.frompyfunc(mpmath.exp, 1, 1),
    expm1=np.frompyfunc(mpmath.expm1, 1, 1),
    log=np.frompyfunc(mpmath.log, 1, 1),
    log1p=np.frompyfunc(mpmath.log1p, 1, 1),
)
_NORMAL_QUANTILE = np.frompyfunc(lambda p: mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1), 1, 1)
LONG = Arithmetic(
    number=lambda values: values.astype(np.longdouble),
    exp=np.exp,
    expm1=np.expm1,
    log=np.log,
    log1p=np.log1p,
)


def log_ratios(batch: Batch) -> list[NDArray[np.float64]]:
    """d per sequence."""
    d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N.astype(np.float64)
    return np.split(d, batch.offsets_B1[1:-1])


def exact_metrics(batch: Batch, a: Arithmetic) -> dict[str, Any]:
    """Metrics of a batch whose tokens all count; None where one does not exist."""
    d = a.number(np.concatenate(log_ratios(batch)))
    mu, pi = a.number(batch.infer_logprobs_N.astype(np.float64)), a.number(batch.train_logprobs_N.astype(np.float64))
    S, infer, train = (_digits(np.add.reduceat(x, batch.offsets_B1[:-1][batch.lengths_B > 0])) for x in (d, mu, pi))
    T = batch.lengths_B[batch.lengths_B > 0]
    variance, bias = _digits(np.array([_mean((d - _mean(d)) ** 2), _mean(d)]))
    # Product ratios leave even a long double: sequences are few enough for 50 digits always.
    of_tokens = _of_tokens(d, mu, pi, a)
    numbers = {name: None if v is None else _digits(np.array([v]))[0] for name, v in of_tokens.items()}
    return numbers | _of_sequences(S, infer, train, T, variance, bias)


def _digits(values: NDArray[Any]) -> NDArray[Any]:
    """As mpmath numbers; a long double in two halves."""
    if values.dtype == object:  # mpmath numbers already
        return values
    mantissa, exponent = np.frexp(values)
    high = mantissa.astype(np.float64)
    low = (mantissa - high).astype(np.float64)
    parts = zip(high.tolist(), low.tolist(), exponent.tolist(), strict=True)
    return np.array([mpmath.ldexp(mpmath.mpf(h) + mpmath.mpf(rest), power) for h, rest, power in parts])


def _mean(x: NDArray[Any]) -> Any:
    return x.sum() / len(x)


def _std(x: NDArray[Any]) -> Any:
    return _mean((x - _mean(x)) ** 2) ** 0.5


def _of_tokens(d: NDArray[Any], mu: NDArray[Any], pi: NDArray[Any], a: Arithmetic) -> dict[str, Any]:
    w, e = a.exp(d), a.expm1(d)
    p, q = a.exp(pi), a.exp(mu)
    gap = abs(p - q)
    # Jensen-Shannon by its textbook form on (q, p) per token: m the mixture, in units of q.
    log_m = a.log1p(e / 2)
    js = (w * (d - log_m) - log_m) / 2
    size = _mean(abs(d))
    found = {
        "kl_k1": _mean(-d), "kl_k2": _mean(d * d) / 2, "kl_k3": _mean(e - d),
        "kl_reverse_k1": _mean(w * d), "kl_reverse_k3": _mean(w * d - e),
        "kl_unweighted_reverse_k3": _mean(a.expm1(-d) + d), "js": _mean(js), "second_moment": _mean(d * d),
        "chi2_token": _mean(e * e), "chi2_token_uncentred": _mean(e * (e + 2)),
        "log_ratio_mean": _mean(d), "log_ratio_std": _std(d), "log_ratio_abs_mean": size,
        "log_ratio_min": d.min(), "log_ratio_max": d.max(),
        "ratio_mean": _mean(w), "ratio_min": w.min(), "ratio_max": w.max(), "tv": _mean(abs(e)) / 2,
        "mult_prob_error": _mean(a.exp(abs(d))), "ess_token": _ess(w),
        "prob_diff_abs_mean": _mean(gap), "prob_diff_abs_max": gap.max(), "prob_diff_abs_std": _std(gap),
        "prob_pearson": _mean((p - _mean(p)) * (q - _mean(q))) / (_std(p) * _std(q)) if _std(p) * _std(q) > 0 else None,
        "infer_logprob_mean": _mean(mu), "train_logprob_mean": _mean(pi),
        "tail_weight_scalar": 2 * _mean(e - d) / (size / (2 / np.pi) ** 0.5) ** 2 if size > 0 else None,
        "identical_share": _share(d == 0),
        "outside_2x": _share(abs(d) > math.log(2)), "outside_5x": _share(abs(d) > math.log(5)),
    }  # fmt: skip
    for threshold in THRESHOLDS:
        label = f"{threshold:g}".replace(".", "_")
        found[f"above_{label}"] = _share(d > math.log(threshold))
        found[f"below_1_over_{label}"] = _share(-d > math.log(threshold))
    return found


def _share(flags: Any) -> float:
    return float(np.count_nonzero(flags)) / len(flags)


def _ess(w: NDArray[Any]) -> Any:
    v = w / w.max()
    return v.sum() ** 2 / (len(v) * (v * v).sum())


def _of_sequences(
    S: NDArray[Any], mu: NDArray[Any], pi: NDArray[Any], T: NDArray[np.int64], variance: Any, bias: Any
) -> dict[str, Any]:
    a = MPMATH
    g = S / T
    w = a.exp(S)
    found = {
        "infer_ppl": _mean(a.exp(-mu / T)), "train_ppl": _mean(a.exp(-pi / T)),
        "log_ppl_gap": _mean(-g), "log_ppl_gap_abs": _mean(abs(g)), "log_ppl_gap_min": (-g).min(),
        "log_ppl_gap_max": (-g).max(), "geometric_ratio_mean": _mean(a.exp(g)),
        "chi2_sequence_log10p1": mpmath.log10(_mean(w * w)),
        "ess_sequence": _ess(w),
        "sequences_outside_2x_share": _share(abs(S) > math.log(2)),
        "sequences_outside_5x_share": _share(abs(S) > math.log(5)),
        "sequences_geometric_outside_share": _share(abs(g) > math.log(1.001)),
    }  # fmt: skip
    expected = _expected_ess(T, variance, a)
    slope, error = _length_scaling(S, T, bias, a)
    return found | {
        "ess_sequence_expected": expected,
        "ess_length_residual": found["ess_sequence"] / expected,
        "length_scaling": slope,
        "length_scaling_se": error,
    }


def _expected_ess(T: NDArray[np.int64], variance: Any, a: Arithmetic) -> Any:
    """ESS of -T_b s^2/2 + sqrt(T_b) s z_j pooled over log2-length buckets."""
    pooled: list[Any] = []
    buckets = np.array([int(t).bit_length() - 1 for t in T])
    for bucket in np.unique(buckets):
        count = int((buckets == bucket).sum())
        length = mpmath.mpf(int(T[buckets == bucket].sum())) / count
        z = _NORMAL_QUANTILE(np.array([mpmath.mpf(2 * j + 1) / (2 * count) for j in range(count)]))
        pooled.extend(-length * variance / 2 + (length * variance) ** 0.5 * z)
    return _ess(a.exp(np.array(pooled)))


def _length_scaling(S: NDArray[Any], T: NDArray[np.int64], bias: Any, a: Arithmetic) -> tuple[Any, Any]:
    """Slope of log mean (S - T dbar)^2 on mean log T, weights n, and its standard error."""
    R = S - T * bias
    buckets = np.array([int(t).bit_length() - 1 for t in T])
    points = []
    for bucket in np.unique(buckets):
        inside = buckets == bucket
        square = _mean(R[inside] ** 2)
        if inside.sum() >= 8 and square > 1e-12 * _mean(S[inside] ** 2):
            points.append((float(inside.sum()), _mean(a.log(a.number(T[inside].astype(np.float64)))), a.log(square)))
    if len(points) < 3:
        return None, None
    n, x, y = (np.array(column) for column in zip(*points, strict=True))
    x = x - (n * x).sum() / n.sum()
    return (n * x * y).sum() / (n * x * x).sum(), (2 / (n * x * x).sum()) ** 0.5
