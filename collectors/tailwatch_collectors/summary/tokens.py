"""Token statistics: one pass over the valid tokens in chunks that stay in cache.

Sums are float64 on raw ratios, nothing clamped. Each sum runs over fixed blocks of 4,096 tokens and a pairwise
tree over the blocks, so it depends on the tokens and their order alone. Tokens with |d| > 300 are rare and would
overflow a square: they leave the plain sums and are added with their exponents.

Shapes: V valid tokens, Q summed quantities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count, magnitude_index, signed_cell
from tailwatch_collectors.summary.moments import CoMoments, Moments, moments_by_bucket, moments_of
from tailwatch_collectors.summary.scaled import MAX_LOG, ScaledSums, split_exp, sum_scaled
from tailwatch_collectors.summary.summary import Slice

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntpArray = NDArray[np.intp]

_BLOCK = 4_096
_CHUNK = 16 * _BLOCK
_EXTREME = 300.0
"""|d| above which e^(2|d|) nears the end of float64."""

_K3_SMALL = 0.5
_K3_COEFFICIENTS = [1 / math.factorial(n + 2) for n in range(14)]
"""q in k3 = d^2 q(d): the Taylor series of (e^d - 1 - d)/d^2, below 1e-17 relative for |d| < 0.5."""

_PLAIN = ("log_ratio_positive", "log_ratio_negative", "log_ratio_sq", "infer_logprob", "train_logprob")
_LN2 = math.log(2)


@dataclass(slots=True)
class TokenStatistics:
    """What the pass over a batch's valid tokens accumulates."""

    plain_Q: Float64Array = field(default_factory=lambda: np.zeros(len(_PLAIN)))
    scaled_Q: ScaledSums = field(default_factory=lambda: ScaledSums.zeros(len(schema.TOKEN_SCALED)))
    log_ratio: Moments = field(default_factory=Moments.zeros)
    prob_diff: Moments = field(default_factory=Moments.zeros)
    probs: CoMoments = field(default_factory=CoMoments.zeros)
    prob_diff_max: float = -math.inf
    grid: NDArray[np.int64] = field(default_factory=lambda: np.zeros(cell_count(schema.TOKEN_BITS), np.int64))
    bin_grid: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(schema.PROBABILITY_BINS * cell_count(schema.BIN_BITS), np.int64)
    )
    bins: Slice = field(default_factory=lambda: Slice.empty(schema.PROBABILITY_BINS))
    lags: Slice = field(default_factory=lambda: Slice.empty(len(schema.LAG_LABELS)))
    above: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(schema.RATIO_THRESHOLDS), np.int64))
    below: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(schema.RATIO_THRESHOLDS), np.int64))
    identical: int = 0
    zero_filler: int = 0
    outside_grid: int = 0
    _blocks: list[Float64Array] = field(default_factory=list)

    def dense_grids(self) -> tuple[Grid, Grid]:
        """The histogram of d, and per probability bin, as sparse grids."""
        return Grid.of_dense(self.grid), Grid.of_dense(self.bin_grid)


def token_statistics(
    infer_V: Float32Array, train_V: Float32Array, log_ratio_V: Float64Array, lag_bucket_V: IntpArray
) -> TokenStatistics:
    """Statistics of the valid tokens; all arrays [V], log-probs finite and not above the tolerance."""
    total = TokenStatistics()
    one_lag = len(lag_bucket_V) > 0 and bool((lag_bucket_V == lag_bucket_V[0]).all())
    terms_QV = np.empty((len(schema.TOKEN_SCALED) + len(_PLAIN), min(_CHUNK, len(log_ratio_V))))
    for start in range(0, len(log_ratio_V), _CHUNK):
        span = slice(start, start + _CHUNK)
        lag_bucket = None if one_lag else lag_bucket_V[span]
        _add_chunk(total, infer_V[span], train_V[span], log_ratio_V[span], lag_bucket, terms_QV)
    if total._blocks:
        sums = _tree_sum(np.concatenate(total._blocks, axis=1))
        scaled = len(schema.TOKEN_SCALED)
        total.scaled_Q = ScaledSums.of(sums[:scaled]).merge(total.scaled_Q)
        total.plain_Q = sums[scaled:]
    if one_lag:
        total.lags = total.bins.pooled(int(lag_bucket_V[0]), buckets=len(schema.LAG_LABELS))
    return total


def _add_chunk(
    total: TokenStatistics,
    infer: Float32Array,
    train: Float32Array,
    d: Float64Array,
    lag_bucket: IntpArray | None,
    terms_QV: Float64Array,
) -> None:
    size = np.abs(d)
    extreme = None if size.max() <= _EXTREME else size > _EXTREME
    p_infer = np.exp(infer, dtype=np.float64)
    terms_QV = terms_QV[:, : len(d)]
    terms = dict(zip((*schema.TOKEN_SCALED, *_PLAIN), terms_QV, strict=True))
    _fill_terms(terms, d if extreme is None else np.where(extreme, 0.0, d))
    # q * expm1(d) keeps the digits that p - q would cancel.
    probability_gap = p_infer * (terms["excess_positive"] + terms["excess_negative"])
    p_train = p_infer * terms["ratio"]
    if extreme is not None:
        terms_QV[: len(schema.TOKEN_SCALED), extreme] = 0.0
        p_train[extreme] = np.exp(train[extreme], dtype=np.float64)
        probability_gap[extreme] = np.abs(p_train[extreme] - p_infer[extreme])
        total.scaled_Q = total.scaled_Q.merge(sum_scaled(*_extreme_quantities(d[extreme])))
    np.maximum(d, 0.0, out=terms["log_ratio_positive"])
    np.subtract(terms["log_ratio_positive"], d, out=terms["log_ratio_negative"])
    np.multiply(d, d, out=terms["log_ratio_sq"])
    terms["infer_logprob"][:], terms["train_logprob"][:] = infer, train
    total._blocks.append(_block_sums(terms_QV))

    total.log_ratio = total.log_ratio.merge(moments_of(d))
    total.prob_diff = total.prob_diff.merge(moments_of(probability_gap))
    total.probs = total.probs.merge(CoMoments.of(p_train, p_infer))
    total.prob_diff_max = max(total.prob_diff_max, float(probability_gap.max()))
    _count(total, infer, train, d, size)

    bins = _probability_bins(infer)
    _count_cells(total, d, bins)
    sums = (terms["log_ratio_positive"], terms["log_ratio_negative"], np.maximum(1.0 - p_infer, 0.0))
    total.bins = total.bins.merge(_slice(d, size, terms["k3"], sums, bins, extreme, buckets=schema.PROBABILITY_BINS))
    if lag_bucket is not None:
        lags = _slice(d, size, terms["k3"], sums, lag_bucket, extreme, buckets=len(schema.LAG_LABELS))
        total.lags = total.lags.merge(lags)


def _fill_terms(terms: dict[str, Float64Array], d: Float64Array) -> None:
    """Write the terms of TOKEN_SCALED for |d| <= 300, all of them from expm1, exp and one logarithm."""
    excess, ratio = np.expm1(d), np.exp(d, out=terms["ratio"])
    inverse = 1.0 / ratio
    squared = d * d
    k3 = np.subtract(excess, d, out=terms["k3"])
    small = squared < _K3_SMALL**2
    if small.all():
        np.multiply(squared, _horner(d), out=k3)
    else:
        inside = d[small]
        k3[small] = inside * inside * _horner(inside)
    product = d * excess
    weighted = d * ratio
    np.multiply(ratio, ratio, out=terms["ratio_sq"])
    np.multiply(excess, excess, out=terms["excess_sq"])
    np.maximum(excess, 0.0, out=terms["excess_positive"])
    np.subtract(terms["excess_positive"], excess, out=terms["excess_negative"])
    np.maximum(weighted, 0.0, out=terms["reverse_k1_positive"])
    np.subtract(terms["reverse_k1_positive"], weighted, out=terms["reverse_k1_negative"])
    # w d - w + 1 = d expm1(d) - k3, and e^-d - 1 + d is that over w: neither subtracts numbers near 1.
    reverse = np.maximum(np.subtract(product, k3, out=terms["reverse_k3"]), 0.0, out=terms["reverse_k3"])
    np.multiply(reverse, inverse, out=terms["k3_inverse"])
    np.maximum(ratio, inverse, out=terms["ratio_abs"])
    # JS = d e / 4 - (1 + e/2) ln cosh(d/2), with cosh^2(d/2) = 1 + e^2 / (4 w).
    log_cosh = 0.5 * np.log1p(0.25 * terms["excess_sq"] * inverse)
    js = np.subtract(0.25 * product, (1.0 + 0.5 * excess) * log_cosh, out=terms["js"])
    np.maximum(js, 0.0, out=js)


def _probability_bins(infer: Float32Array) -> IntpArray:
    """Bin of each token: how many edges it has reached. Nineteen comparisons cost a sixth of a binary search."""
    bins = np.zeros(len(infer), np.uint8)
    for edge in schema.PROBABILITY_LOG_EDGES:
        bins += (infer >= edge).view(np.uint8)
    return bins.astype(np.intp)


def _extreme_quantities(d: Float64Array) -> tuple[Float64Array, NDArray[np.int64]]:
    """[Q, X] terms of TOKEN_SCALED for |d| > 300 as mantissa and exponent: each one's leading term, exact there."""
    up = d > 0
    size = np.minimum(np.abs(d), MAX_LOG)
    mantissa, exponent = split_exp(size)  # e^|d|
    inverse, inverse_exponent = split_exp(-size)
    square, square_exponent = split_exp(2 * size)
    inverse_square, inverse_square_exponent = split_exp(-2 * size)
    zero = np.zeros(len(d), np.int64)
    one = np.ones(len(d))
    nothing = np.zeros(len(d))
    by_name = {
        "ratio": (np.where(up, mantissa, inverse), np.where(up, exponent, inverse_exponent)),
        "ratio_sq": (np.where(up, square, inverse_square), np.where(up, square_exponent, inverse_square_exponent)),
        "excess_positive": (np.where(up, mantissa, nothing), np.where(up, exponent, zero)),
        "excess_negative": (np.where(up, nothing, one), zero),
        "excess_sq": (np.where(up, square, one), np.where(up, square_exponent, zero)),
        "k3": (np.where(up, mantissa, size - 1), np.where(up, exponent, zero)),
        "k3_inverse": (np.where(up, size - 1, mantissa), np.where(up, zero, exponent)),
        "reverse_k1_positive": (np.where(up, mantissa * size, nothing), np.where(up, exponent, zero)),
        "reverse_k1_negative": (np.where(up, nothing, inverse * size), np.where(up, zero, inverse_exponent)),
        "reverse_k3": (np.where(up, mantissa * (size - 1), one), np.where(up, exponent, zero)),
        "js": (np.where(up, mantissa * (_LN2 / 2), _LN2 / 2), np.where(up, exponent, zero)),
        "ratio_abs": (mantissa, exponent),
    }
    columns = [by_name[name] for name in schema.TOKEN_SCALED]
    return np.stack([column[0] for column in columns]), np.stack([column[1] for column in columns])


def _slice(
    d: Float64Array,
    size: Float64Array,
    k3: Float64Array,
    sums: tuple[Float64Array, ...],
    bucket: IntpArray,
    extreme: NDArray[np.bool_] | None,
    *,
    buckets: int,
) -> Slice:
    """Token statistics per bucket of one chunk."""
    counts = [
        np.bincount(bucket, minlength=buckets),
        np.bincount(bucket[size > schema.LOG_RATIO_THRESHOLDS[schema.RATIO_THRESHOLDS.index(2.0)]], minlength=buckets),
        np.bincount(bucket[size > schema.LOG_RATIO_THRESHOLDS[schema.RATIO_THRESHOLDS.index(5.0)]], minlength=buckets),
    ]
    smallest, largest = np.full(buckets, np.inf), np.full(buckets, -np.inf)
    np.minimum.at(smallest, bucket, d)
    np.maximum.at(largest, bucket, d)
    k3_R = ScaledSums.of(np.bincount(bucket, weights=k3, minlength=buckets).astype(np.float64))
    if extreme is not None:
        index = schema.TOKEN_SCALED.index("k3")
        mantissa, exponent = _extreme_quantities(d[extreme])
        for which in np.unique(bucket[extreme]):
            inside = bucket[extreme] == which
            added = sum_scaled(mantissa[index, inside], exponent[index, inside])
            padded = ScaledSums.zeros(buckets)
            padded.mantissa[which], padded.exponent[which] = added.mantissa, added.exponent
            k3_R = k3_R.merge(padded)
    return Slice(
        np.stack(counts, axis=1).astype(np.int64),
        np.stack([np.bincount(bucket, weights=values, minlength=buckets) for values in sums], axis=1),
        moments_by_bucket(d, bucket, buckets=buckets),
        k3_R,
        smallest,
        largest,
    )


def _count(
    total: TokenStatistics, infer: Float32Array, train: Float32Array, d: Float64Array, size: Float64Array
) -> None:
    """Exact counts over thresholds, and of values that look like filler."""
    # searchsorted counts the thresholds passed; a reversed cumulative sum turns that into exceedances.
    beyond = d[size > schema.LOG_RATIO_THRESHOLDS[0]]  # few, in a sound run
    passed = np.searchsorted(schema.LOG_RATIO_THRESHOLDS, np.abs(beyond), side="left")
    levels = len(schema.LOG_RATIO_THRESHOLDS) + 1
    for counts, side in ((total.above, beyond > 0), (total.below, beyond < 0)):
        np.add(counts, np.bincount(passed[side], minlength=levels)[::-1].cumsum()[::-1][1:], out=counts)
    total.identical += int(np.count_nonzero(d == 0))
    infer_filler = (infer == 0) & (train < schema.FILLER_BELOW)
    train_filler = (train == 0) & (infer < schema.FILLER_BELOW)
    total.zero_filler += int(np.count_nonzero(infer_filler | train_filler))


def _count_cells(total: TokenStatistics, d: Float64Array, bins: IntpArray) -> None:
    with np.errstate(over="ignore"):  # beyond float32 is beyond the grid
        d32 = d.astype(np.float32)
    index = magnitude_index(d32, schema.TOKEN_BITS)
    total.outside_grid += int(
        np.count_nonzero(index == (schema.MAX_EXPONENT - schema.MIN_EXPONENT) << schema.TOKEN_BITS)
    )
    total.grid += np.bincount(signed_cell(d32, index, schema.TOKEN_BITS), minlength=len(total.grid))
    # The coarser grid's index is the finer one's without its last bits: -1 and the end stay what they are.
    coarse = signed_cell(d32, index >> (schema.TOKEN_BITS - schema.BIN_BITS), schema.BIN_BITS)
    total.bin_grid += np.bincount(bins * cell_count(schema.BIN_BITS) + coarse, minlength=len(total.bin_grid))


def _horner(x: Float64Array) -> Float64Array:
    value = np.full_like(x, _K3_COEFFICIENTS[-1])
    for coefficient in reversed(_K3_COEFFICIENTS[:-1]):
        value *= x
        value += coefficient
    return value


def _block_sums(values_QV: Float64Array) -> Float64Array:
    """[Q, blocks] sums over blocks of 4,096 tokens; the last one is padded with zeros."""
    rows, length = values_QV.shape
    blocks = -(-length // _BLOCK)
    if length < blocks * _BLOCK:
        padded = np.zeros((rows, blocks * _BLOCK))
        padded[:, :length] = values_QV
        values_QV = padded
    sums: Float64Array = values_QV.reshape(rows, blocks, _BLOCK).sum(axis=2)
    return sums


def _tree_sum(blocks: Float64Array) -> Float64Array:
    """Pairwise sum over the last axis, in a fixed order."""
    while blocks.shape[1] > 1:
        if blocks.shape[1] % 2:
            blocks = np.concatenate((blocks, np.zeros((blocks.shape[0], 1))), axis=1)
        blocks = blocks[:, 0::2] + blocks[:, 1::2]
    return blocks[:, 0] + 0.0
