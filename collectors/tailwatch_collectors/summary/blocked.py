"""The backend that needs numpy alone: whole stages over chunks of tokens that stay in cache.

First what counts is decided (mask, finiteness, sign of the log-probs: counted findings, never folded into sums),
then tokens, slices, sequences, alignment and the picked tokens are summed over what is left.

Shapes: N tokens received, V valid tokens, B sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.moments import Moments, moments_of
from tailwatch_collectors.summary.parts import Buckets, LagSums, Parts
from tailwatch_collectors.summary.picks import Picks, highest, pick, uniform
from tailwatch_collectors.summary.properties import Lags, lags, properties
from tailwatch_collectors.summary.segments import Segments, segments
from tailwatch_collectors.summary.tokens import CHUNK, token_statistics
from tailwatch_collectors.summary.validation import Valid, validate

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


def parts(batch: Batch, *, sample: bool = False) -> Parts:
    """What `assemble` needs of a batch."""
    valid = validate(batch)
    index_V = valid.index_V
    infer_V = batch.infer_logprobs_N if index_V is None else batch.infer_logprobs_N[index_V]
    train_V = batch.train_logprobs_N if index_V is None else batch.train_logprobs_N[index_V]
    log_ratio_V = train_V.astype(np.float64) - infer_V
    log_ratio_V += 0.0  # -0.0 becomes 0.0: the two compare equal but are not the same bits
    lag = lags(batch)
    known = properties(batch, lag)
    cut = segments(batch, valid, known, chunk=CHUNK)
    labels = {"position": schema.POSITION_LABELS} | {name: found.labels for name, found in known.items()}
    tokens = token_statistics(
        infer_V,
        train_V,
        log_ratio_V,
        cut,
        buckets={name: len(of) for name, of in labels.items()},
        count_B=valid.count_B,
    )
    entropies = _entropies(batch, index_V)
    scores = _scores(batch, valid, train_V, log_ratio_V)
    counters = valid.counters | {
        "tokens": len(log_ratio_V),
        "tokens_identical": tokens.identical,
        "tokens_zero_filler": tokens.zero_filler,
        "tokens_outside_grid": tokens.outside_grid,
        "tokens_score": scores.tokens,
    }
    counters |= {name: count for name, (count, _) in entropies.items()} | _token_ids(batch, index_V)
    sums = dict(
        zip(
            ("log_ratio_positive", "log_ratio_negative", "log_ratio_sq", "infer_logprob", "train_logprob"),
            tokens.plain_Q.tolist(),
            strict=True,
        )
    )
    sums |= {name.removesuffix("_tokens"): total for name, (_, total) in entropies.items()}
    sums |= {"score_norm_sq": scores.norm_sq, "fisher_trace": scores.fisher_trace}
    return Parts(
        counters=counters,
        sums=sums,
        above=tokens.above,
        below=tokens.below,
        scaled=tokens.scaled_Q,
        low=float(log_ratio_V.min(initial=math.inf)),
        high=float(log_ratio_V.max(initial=-math.inf)),
        prob_diff_max=tokens.prob_diff_max,
        log_ratio=tokens.log_ratio,
        prob_diff=tokens.prob_diff,
        probs=tokens.probs,
        score_residual=scores.residual,
        sign_grid=tokens.sign_grid,
        bin_grid=tokens.bin_grid,
        bins=tokens.bins,
        buckets={name: Buckets(of, tokens.buckets[name], tokens.octaves[name]) for name, of in labels.items()},
        lag=_lag_sums(lag, valid),
        clusters=tokens.clusters,
        bin_sq=tokens.clusters.bin_sq,
        exceed=tokens.clusters.exceed,
        complete_B=valid.complete_B,
        sign_B=_sequence_sign(cut, len(valid.complete_B)),
        align=_align(batch, valid),
        worst_upper=_highest(batch, valid, log_ratio_V, schema.WORST_TOKENS),
        worst_lower=_highest(batch, valid, -log_ratio_V, schema.WORST_TOKENS),
        sample=_sample(batch, valid) if sample else Picks.empty(),
    )


def _lag_sums(lag: Lags, valid: Valid) -> LagSums:
    if lag.lag_N is None:
        return LagSums.of_sequences(lag, valid.count_B)
    lag_V = lag.lag_N if valid.index_V is None else lag.lag_N[valid.index_V]
    first_K = (np.cumsum(valid.count_B) - valid.count_B)[valid.count_B > 0]
    oldest_K = np.maximum.reduceat(lag_V, first_K) if len(first_K) else lag_V
    return LagSums.of_counts(lag_V, np.ones(len(lag_V), np.int64)).with_oldest(oldest_K[oldest_K >= 0])


@dataclass(frozen=True, slots=True)
class _Scores:
    """Norms of the tokens' scores (the gradient of log pi with respect to the logits)."""

    tokens: int = 0
    norm_sq: float = 0.0
    fisher_trace: float = 0.0
    residual: Moments = field(default_factory=Moments.zeros)


def _scores(batch: Batch, valid: Valid, train_V: NDArray[np.float32], log_ratio_V: Float64Array) -> _Scores:
    """From sum_p2_other: the squared norm is (1 - p)^2 plus it, the trace of the logit Fisher 1 - p^2 minus it."""
    if batch.sum_p2_other_N is None:
        return _Scores()
    other_N, index_V = batch.sum_p2_other_N, valid.index_V
    other_V = (other_N if index_V is None else other_N[index_V]).astype(np.float64)
    complement_V = np.maximum(-np.expm1(train_V.astype(np.float64)), 0.0)
    # The other probabilities sum to 1 - p, so their squares to no more than its square; float32 may round up.
    usable = (other_V >= 0) & (other_V <= complement_V * complement_V * (1 + 1e-3) + 1e-6)
    other, complement = other_V[usable], complement_V[usable]
    norm_sq = complement * complement + other
    steep = norm_sq > schema.MIN_SCORE_NORM_SQ
    residual = log_ratio_V[usable][steep] / np.sqrt(norm_sq[steep])
    trace = np.maximum(complement * (2 - complement) - other, 0.0)
    return _Scores(len(other), float(norm_sq.sum()), float(trace.sum()), moments_of(residual))


def _token_ids(batch: Batch, index_V: Int64Array | None) -> dict[str, int]:
    """How many tokens carry an id from both sides, and how many of those differ."""
    ours, theirs = batch.token_ids_N, batch.train_token_ids_N
    if ours is None or theirs is None:
        return {"token_ids_compared": 0, "token_ids_mismatched": 0}
    differ = ours != theirs if index_V is None else ours[index_V] != theirs[index_V]
    return {"token_ids_compared": len(differ), "token_ids_mismatched": int(np.count_nonzero(differ))}


def _entropies(batch: Batch, index_V: Int64Array | None) -> dict[str, tuple[int, float]]:
    """Count and sum of each entropy over valid tokens that carry a finite one."""
    train = _finite_or_nan(batch.entropy_N, index_V)
    infer = _finite_or_nan(batch.infer_entropy_N, index_V)
    gap = None if train is None or infer is None else train - infer
    found = {}
    for name, values in (("entropy", train), ("infer_entropy", infer), ("entropy_gap", gap)):
        there = np.empty(0) if values is None else values[~np.isnan(values)]
        found[f"{name}_tokens"] = (len(there), float(there.sum()))
    return found


def _finite_or_nan(values_N: NDArray[np.float32] | None, index_V: Int64Array | None) -> Float64Array | None:
    if values_N is None:
        return None
    values = (values_N if index_V is None else values_N[index_V]).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _sequence_sign(cut: Segments, sequences: int) -> Int64Array:
    """[B] sign of the advantage where all tokens of the sequence share it, else unknown."""
    unknown = schema.ADVANTAGE_SIGNS.index("unknown")
    code_G = cut.code_G["advantage"]
    first = np.flatnonzero(np.diff(cut.row_G, prepend=-1))
    sign_B = np.full(sequences, unknown, np.int64)
    if len(first):
        low, high = np.minimum.reduceat(code_G, first), np.maximum.reduceat(code_G, first)
        sign_B[cut.row_G[first]] = np.where(low == high, low, unknown)
    return sign_B


def _align(batch: Batch, valid: Valid) -> Float64Array:
    """[ALIGN_SHIFTS, ALIGN_SUMS] over pairs (infer at t, train at t + shift), both valid, t in the first 64."""
    width = schema.ALIGN_TOKENS
    heads_B = np.minimum(batch.lengths_B, width)
    inside_BT = np.arange(width) < heads_B[:, None]
    index_BT = np.where(inside_BT, batch.offsets_B1[:-1, None] + np.arange(width), 0)
    result = np.zeros((len(schema.ALIGN_SHIFTS), len(schema.ALIGN_SUMS)))
    if batch.tokens == 0:
        return result
    valid_BT = inside_BT & valid.valid_N[index_BT]
    x_BT = np.where(valid_BT, batch.infer_logprobs_N[index_BT], 0).astype(np.float64)
    y_BT = np.where(valid_BT, batch.train_logprobs_N[index_BT], 0).astype(np.float64)
    for row, shift in enumerate(schema.ALIGN_SHIFTS):
        left, right = slice(max(0, -shift), width - max(0, shift)), slice(max(0, shift), width + min(0, shift))
        both = valid_BT[:, left] & valid_BT[:, right]
        x, y = x_BT[:, left][both], y_BT[:, right][both]
        result[row] = (len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())
    return result + 0.0


def _highest(batch: Batch, valid: Valid, priority_V: Float64Array, limit: int) -> Picks:
    """The tokens of highest priority."""
    picked = highest(priority_V, limit)
    index = picked if valid.index_V is None else valid.index_V[picked]
    return pick(batch, index.astype(np.int64), priority_V[picked])


def _sample(batch: Batch, valid: Valid) -> Picks:
    """A uniform sample of the valid tokens, drawn by their places."""
    index_V = np.arange(batch.tokens) if valid.index_V is None else valid.index_V
    row_V = np.searchsorted(batch.offsets_B1, index_V, side="right") - 1
    position_V = index_V - batch.offsets_B1[row_V]
    meta = batch.meta
    drawn_V = uniform(meta.step, meta.update_index, meta.rank, meta.part, row_V, position_V)
    return _highest(batch, valid, drawn_V, schema.SAMPLE_TOKENS)
