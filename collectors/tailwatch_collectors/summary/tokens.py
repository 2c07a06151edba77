"""Token statistics: one pass over the valid tokens in chunks that stay in cache.

Sums are float64 on raw ratios, nothing clamped. Each sum runs over fixed blocks of 4,096 tokens and a pairwise
tree over the blocks, so it depends on the tokens and their order alone. Tokens with |d| > 150 are rare and their
squares would overflow: they leave the plain sums and are added with their exponents. Slices and sequences add up
segments.

Shapes: V valid tokens, Q summed quantities, G segments, B sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.clusters import Clusters
from tailwatch_collectors.summary.grid import cell_count, magnitude_index, signed_cell
from tailwatch_collectors.summary.moments import CoMoments, Moments, moments_by_bucket, moments_of
from tailwatch_collectors.summary.scaled import MAX_LOG, ScaledSums, split_exp, sum_scaled
from tailwatch_collectors.summary.segments import Segments
from tailwatch_collectors.summary.slices import OCTAVES, BucketStats

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntpArray = NDArray[np.intp]
Int64Array = NDArray[np.int64]

_BLOCK = 4_096
CHUNK = 16 * _BLOCK
"""Tokens gone through at a time."""
_K3_SMALL = 0.5
_K3_COEFFICIENTS = [1 / math.factorial(n + 2) for n in range(14)]
"""q in k3 = d^2 q(d): the Taylor series of (e^d - 1 - d)/d^2, below 1e-17 relative for |d| < 0.5."""

_PLAIN = ("log_ratio_positive", "log_ratio_negative", "log_ratio_sq", "infer_logprob", "train_logprob")
_BY_SEGMENT = ("complement", "prob_diff_abs", "outside_2x", "outside_5x")
"""Terms that only segments are summed of: the whole has better ones."""
_ROWS = (*schema.TOKEN_SCALED, *_PLAIN, *_BY_SEGMENT)
_LN2 = math.log(2)
_LOG_2X, _LOG_5X = (float(schema.LOG_RATIO_THRESHOLDS[schema.RATIO_THRESHOLDS.index(C)]) for C in (2.0, 5.0))


@dataclass(slots=True)
class TokenStatistics:
    """What the pass over a batch's valid tokens accumulates."""

    clusters: Clusters
    buckets: dict[str, BucketStats]
    """Per property, in the order of its labels."""
    octaves: dict[str, Int64Array]
    """[R, OCTAVES] per property."""
    plain_Q: Float64Array = field(default_factory=lambda: np.zeros(len(_PLAIN)))
    scaled_Q: ScaledSums = field(default_factory=lambda: ScaledSums.zeros(len(schema.TOKEN_SCALED)))
    log_ratio: Moments = field(default_factory=Moments.zeros)
    prob_diff: Moments = field(default_factory=Moments.zeros)
    probs: CoMoments = field(default_factory=CoMoments.zeros)
    prob_diff_max: float = -math.inf
    sign_grid: Int64Array = field(
        default_factory=lambda: np.zeros(len(schema.ADVANTAGE_SIGNS) * cell_count(schema.TOKEN_BITS), np.int64)
    )
    bin_grid: Int64Array = field(
        default_factory=lambda: np.zeros(schema.PROBABILITY_BINS * cell_count(schema.BIN_BITS), np.int64)
    )
    bins: BucketStats = field(default_factory=lambda: BucketStats.empty(schema.PROBABILITY_BINS))
    above: Int64Array = field(default_factory=lambda: np.zeros(len(schema.RATIO_THRESHOLDS), np.int64))
    below: Int64Array = field(default_factory=lambda: np.zeros(len(schema.RATIO_THRESHOLDS), np.int64))
    identical: int = 0
    zero_filler: int = 0
    outside_grid: int = 0
    blocks: list[Float64Array] = field(default_factory=list)


def token_statistics(
    infer_V: Float32Array,
    train_V: Float32Array,
    log_ratio_V: Float64Array,
    cut: Segments,
    *,
    buckets: dict[str, int],
    count_B: Int64Array,
) -> TokenStatistics:
    """Statistics of the valid tokens.

    Args:
        infer_V: [V] finite and not above the tolerance.
        train_V: likewise.
        log_ratio_V: [V] their difference.
        cut: the segments, none across a multiple of CHUNK.
        buckets: number of labels of each property.
        count_B: [B] valid tokens per sequence.
    """
    total = TokenStatistics(
        Clusters.of(count_B),
        {name: BucketStats.empty(count) for name, count in buckets.items()},
        {name: np.zeros((count, OCTAVES), np.int64) for name, count in buckets.items()},
    )
    rows_QV = np.empty((len(_ROWS), min(CHUNK, len(log_ratio_V))))
    for start in range(0, len(log_ratio_V), CHUNK):
        span = slice(start, start + CHUNK)
        inside = slice(*np.searchsorted(cut.starts_G, (start, start + CHUNK)))
        chunk = _Chunk(
            infer_V[span],
            train_V[span],
            log_ratio_V[span],
            cut.starts_G[inside] - start,
            cut.row_G[inside],
            {name: code[inside] for name, code in cut.code_G.items()},
        )
        _add_chunk(total, chunk, rows_QV[:, : len(chunk.d)])
    total.clusters.finish()
    if total.blocks:
        sums = _tree_sum(np.concatenate(total.blocks, axis=1))
        scaled = len(schema.TOKEN_SCALED)
        total.scaled_Q = ScaledSums.of(sums[:scaled]).merge(total.scaled_Q)
        total.plain_Q = sums[scaled:]
    return total


@dataclass(frozen=True, slots=True)
class _Chunk:
    infer: Float32Array
    train: Float32Array
    d: Float64Array
    starts_G: Int64Array
    row_G: Int64Array
    code_G: dict[str, NDArray[np.int32]]

    @property
    def lengths_G(self) -> Int64Array:
        return np.diff(self.starts_G, append=len(self.d))

    def code(self, name: str) -> IntpArray | int:
        """Code per token; the code itself where it is the same for all."""
        code_G = self.code_G[name]
        if (code_G == code_G[0]).all():
            return int(code_G[0])
        return np.repeat(code_G, self.lengths_G).astype(np.intp)


def _add_chunk(total: TokenStatistics, chunk: _Chunk, rows_QV: Float64Array) -> None:
    d = chunk.d
    size = np.abs(d)
    extreme = None if size.max() <= schema.CLUSTER_CLIP else np.flatnonzero(size > schema.CLUSTER_CLIP)
    p_infer = np.exp(chunk.infer, dtype=np.float64)
    terms = dict(zip(_ROWS, rows_QV, strict=True))
    _fill_terms(terms, d if extreme is None else np.where(size > schema.CLUSTER_CLIP, 0.0, d))
    # q * expm1(d) keeps the digits that p - q would cancel.
    gap = np.multiply(p_infer, terms["excess_positive"] + terms["excess_negative"], out=terms["prob_diff_abs"])
    p_train = p_infer * terms["ratio"]
    if extreme is not None:
        rows_QV[: len(schema.TOKEN_SCALED), extreme] = 0.0
        p_train[extreme] = np.exp(chunk.train[extreme], dtype=np.float64)
        gap[extreme] = np.abs(p_train[extreme] - p_infer[extreme])
        total.scaled_Q = total.scaled_Q.merge(sum_scaled(*_extreme_quantities(d[extreme])))
    np.maximum(d, 0.0, out=terms["log_ratio_positive"])
    np.subtract(terms["log_ratio_positive"], d, out=terms["log_ratio_negative"])
    np.multiply(d, d, out=terms["log_ratio_sq"])
    terms["infer_logprob"][:], terms["train_logprob"][:] = chunk.infer, chunk.train
    total.blocks.append(_block_sums(rows_QV[: -len(_BY_SEGMENT)]))

    total.log_ratio = total.log_ratio.merge(moments_of(d))
    total.prob_diff = total.prob_diff.merge(moments_of(gap))
    total.probs = total.probs.merge(CoMoments.of(p_train, p_infer))
    total.prob_diff_max = max(total.prob_diff_max, float(gap.max()))
    _count(total, chunk.infer, chunk.train, d, size)

    np.maximum(-np.expm1(chunk.infer, dtype=np.float64), 0.0, out=terms["complement"])
    terms["outside_2x"][:], terms["outside_5x"][:] = size > _LOG_2X, size > _LOG_5X
    bins = _probability_bins(chunk.infer)
    total.bins = total.bins.merge(_by_token(d, terms, bins, extreme, buckets=schema.PROBABILITY_BINS))
    octave = _count_cells(total, chunk, bins)
    sums_G = _segment_sums(rows_QV, terms, chunk, extreme)
    for name, code_G in chunk.code_G.items():
        buckets = len(total.octaves[name])
        added = _by_segment(sums_G, code_G, chunk, extreme, buckets=buckets)
        total.buckets[name] = total.buckets[name].merge(added)
        key = chunk.code(name) * OCTAVES + octave
        total.octaves[name] += np.bincount(key, minlength=buckets * OCTAVES).reshape(buckets, OCTAVES)
    row = np.repeat(chunk.row_G, chunk.lengths_G)
    total.clusters.add(chunk.row_G, sums_G)
    total.clusters.add_tokens(row, octave, bins)


def _segment_sums(
    rows_QV: Float64Array, terms: dict[str, Float64Array], chunk: _Chunk, extreme: IntpArray | None
) -> dict[str, Float64Array]:
    """[G] sums over segments of every term, with moments and extremes of d.

    Exponentials count as at CLUSTER_CLIP where |d| is beyond it, but `k3_slice`, which leaves those tokens out.
    """
    d, starts_G = chunk.d, chunk.starts_G
    k3_G = None
    if extreme is not None:
        k3_G = np.add.reduceat(terms["k3"], starts_G)
        clipped = np.empty((len(schema.TOKEN_SCALED), len(extreme)))
        _fill_terms(
            dict(zip(schema.TOKEN_SCALED, clipped, strict=True)),
            np.clip(d[extreme], -schema.CLUSTER_CLIP, schema.CLUSTER_CLIP),
        )
        rows_QV[: len(schema.TOKEN_SCALED), extreme] = clipped
    sums = dict(zip(_ROWS, np.add.reduceat(rows_QV, starts_G, axis=1), strict=True))
    n = chunk.lengths_G
    sums["n"] = n.astype(np.float64)
    sums["k3_slice"] = sums["k3"] if k3_G is None else k3_G
    sums["log_ratio"] = sums["log_ratio_positive"] - sums["log_ratio_negative"]
    sums["log_ratio_abs"] = sums["log_ratio_positive"] + sums["log_ratio_negative"]
    sums["excess"] = sums["excess_positive"] - sums["excess_negative"]
    sums["excess_abs"] = sums["excess_positive"] + sums["excess_negative"]
    sums["reverse_k1"] = sums["reverse_k1_positive"] - sums["reverse_k1_negative"]
    sums["mean"] = sums["log_ratio"] / n
    deviation = d - np.repeat(sums["mean"], n)
    sums["m2"] = np.add.reduceat(deviation * deviation, starts_G)
    sums["min"], sums["max"] = np.minimum.reduceat(d, starts_G), np.maximum.reduceat(d, starts_G)
    return sums


def _by_segment(
    sums_G: dict[str, Float64Array],
    code_G: NDArray[np.int32],
    chunk: _Chunk,
    extreme: IntpArray | None,
    *,
    buckets: int,
) -> BucketStats:
    """Statistics per bucket of one property, from the sums over segments."""

    def total(values_G: Float64Array) -> Float64Array:
        return np.bincount(code_G, weights=values_G, minlength=buckets).astype(np.float64, copy=False)

    n = total(sums_G["n"])
    mean = total(sums_G["log_ratio"]) / np.maximum(n, 1)
    offset = sums_G["mean"] - mean[code_G]
    low, high = np.full(buckets, np.inf), np.full(buckets, -np.inf)
    np.minimum.at(low, code_G, sums_G["min"])
    np.maximum.at(high, code_G, sums_G["max"])
    counts = [n, total(sums_G["outside_2x"]), total(sums_G["outside_5x"])]
    k3_R = ScaledSums.of(total(sums_G["k3_slice"]))
    if extreme is not None:
        of_extreme = code_G[np.searchsorted(chunk.starts_G, extreme, side="right") - 1]
        k3_R = _with_extreme(k3_R, chunk.d[extreme], of_extreme)
    return BucketStats(
        np.stack(counts, axis=1).astype(np.int64),
        np.stack([total(sums_G[name]) for name in schema.SLICE_SUMS], axis=1),
        Moments(n.astype(np.int64), mean, total(sums_G["m2"] + sums_G["n"] * offset * offset)),
        k3_R,
        low,
        high,
    )


def _by_token(
    d: Float64Array,
    terms: dict[str, Float64Array],
    bucket: IntpArray,
    extreme: IntpArray | None,
    *,
    buckets: int,
) -> BucketStats:
    """Statistics per bucket of a property that changes from token to token."""

    def total(values: Float64Array) -> Float64Array:
        return np.bincount(bucket, weights=values, minlength=buckets).astype(np.float64, copy=False)

    low, high = np.full(buckets, np.inf), np.full(buckets, -np.inf)
    np.minimum.at(low, bucket, d)
    np.maximum.at(high, bucket, d)
    k3_R = ScaledSums.of(total(terms["k3"]))
    if extreme is not None:
        k3_R = _with_extreme(k3_R, d[extreme], bucket[extreme])
    few = np.flatnonzero(terms["outside_2x"])
    fewer = few[terms["outside_5x"][few] > 0]
    counts = [np.bincount(which, minlength=buckets) for which in (bucket, bucket[few], bucket[fewer])]
    return BucketStats(
        np.stack(counts, axis=1).astype(np.int64),
        np.stack([total(terms[name]) for name in schema.SLICE_SUMS], axis=1),
        moments_by_bucket(d, bucket, buckets=buckets),
        k3_R,
        low,
        high,
    )


def _with_extreme(k3_R: ScaledSums, d: Float64Array, bucket: NDArray[np.integer]) -> ScaledSums:
    """Add k3 of the tokens beyond CLUSTER_CLIP, with their exponents."""
    mantissa, exponent = (part[schema.TOKEN_SCALED.index("k3")] for part in _extreme_quantities(d))
    for which in np.unique(bucket):
        added = sum_scaled(mantissa[bucket == which], exponent[bucket == which])
        padded = ScaledSums.zeros(len(k3_R.mantissa))
        padded.mantissa[which], padded.exponent[which] = added.mantissa, added.exponent
        k3_R = k3_R.merge(padded)
    return k3_R


def _fill_terms(terms: dict[str, Float64Array], d: Float64Array) -> None:
    """Write the terms of TOKEN_SCALED for |d| <= 150, all of them from expm1, exp and one logarithm."""
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
    """[Q, X] terms of TOKEN_SCALED for |d| > 150 as mantissa and exponent: each one's leading term, exact there."""
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


def _count_cells(total: TokenStatistics, chunk: _Chunk, bins: IntpArray) -> IntpArray:
    """Fill the grids; the octave cell of each token."""
    with np.errstate(over="ignore"):  # beyond float32 is beyond the grid
        d32 = chunk.d.astype(np.float32)
    index = magnitude_index(d32, schema.TOKEN_BITS)
    total.outside_grid += int(
        np.count_nonzero(index == (schema.MAX_EXPONENT - schema.MIN_EXPONENT) << schema.TOKEN_BITS)
    )
    key = chunk.code("advantage") * cell_count(schema.TOKEN_BITS) + signed_cell(d32, index, schema.TOKEN_BITS)
    total.sign_grid += np.bincount(key, minlength=len(total.sign_grid))
    # A coarser grid's index is the finer one's without its last bits: -1 and the end stay what they are.
    coarse = signed_cell(d32, index >> (schema.TOKEN_BITS - schema.BIN_BITS), schema.BIN_BITS)
    total.bin_grid += np.bincount(bins * cell_count(schema.BIN_BITS) + coarse, minlength=len(total.bin_grid))
    octave = signed_cell(d32, index >> (schema.TOKEN_BITS - schema.OCTAVE_BITS), schema.OCTAVE_BITS)
    return octave.astype(np.intp)


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
