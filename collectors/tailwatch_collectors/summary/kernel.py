"""summarise: a batch to its summary, in cache-blocked numpy.

First what counts is decided (mask, finiteness, sign of the log-probs: counted findings, never folded into sums),
then tokens, sequences, alignment and the worst tokens are summed over what is left.

Shapes: N tokens received, V valid tokens, B sequences, C complete sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.sequences import Sequences, sequence_statistics
from tailwatch_collectors.summary.summary import Summary
from tailwatch_collectors.summary.tokens import token_statistics
from tailwatch_collectors.summary.worst import Worst, worst_indices

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


def summarise(batch: Batch) -> Summary:
    """The mergeable summary of a batch; bit-deterministic in its tokens and their order."""
    valid = _validate(batch)
    index_V = valid.index_V
    infer_V = batch.infer_logprobs_N if index_V is None else batch.infer_logprobs_N[index_V]
    train_V = batch.train_logprobs_N if index_V is None else batch.train_logprobs_N[index_V]
    log_ratio_V = train_V.astype(np.float64) - infer_V
    log_ratio_V += 0.0  # -0.0 becomes 0.0: the two compare equal but are not the same bits
    lag_V, lag_bucket_V = _lags(batch, valid, len(log_ratio_V))
    tokens = token_statistics(infer_V, train_V, log_ratio_V, lag_bucket_V)
    sequences = sequence_statistics(_sequences(batch, valid, infer_V, train_V, log_ratio_V))
    entropies = _entropies(batch, index_V)
    known_lag_V = np.empty(0, np.int64) if lag_V is None else lag_V[lag_V >= 0]
    rewards = np.empty(0) if batch.reward_B is None else batch.reward_B[np.isfinite(batch.reward_B)].astype(np.float64)

    counters = valid.counters | {
        "tokens": len(log_ratio_V),
        "tokens_identical": tokens.identical,
        "tokens_zero_filler": tokens.zero_filler,
        "tokens_outside_grid": tokens.outside_grid,
        "tokens_lag_known": len(known_lag_V),
        "sequences_complete": int(np.count_nonzero(valid.complete_B)),
        "sequences_outside_2x": sequences.outside_2x,
        "sequences_outside_5x": sequences.outside_5x,
        "sequences_geometric_outside": sequences.geometric_outside,
        "rewards": len(rewards),
    }
    counters |= {name: count for name, (count, _) in entropies.items()}
    sums = dict(
        zip(
            ("log_ratio_positive", "log_ratio_negative", "log_ratio_sq", "infer_logprob", "train_logprob"),
            tokens.plain_Q.tolist(),
            strict=True,
        )
    )
    sums |= {name.removesuffix("_tokens"): total for name, (_, total) in entropies.items()}
    # Versions may be anything up to 2^53: their sum is taken where it cannot wrap.
    sums |= {"reward": float(rewards.sum()), "lag": float(known_lag_V.sum(dtype=np.float64))}
    minima = {
        "log_ratio": float(log_ratio_V.min(initial=math.inf)),
        "log_ppl_gap": sequences.gap_min,
        "lag": float(known_lag_V.min(initial=2**53)) if len(known_lag_V) else math.inf,
    }
    maxima = {
        "log_ratio": float(log_ratio_V.max(initial=-math.inf)),
        "prob_diff_abs": tokens.prob_diff_max,
        "log_ppl_gap": sequences.gap_max,
        "lag": float(known_lag_V.max()) if len(known_lag_V) else -math.inf,
    }
    grid, bin_grid = tokens.dense_grids()
    return Summary(
        counters=np.array([counters[name] for name in schema.COUNTERS], np.int64),
        above=tokens.above,
        below=tokens.below,
        token_sums=np.array([sums[name] for name in schema.TOKEN_SUMS]) + 0.0,
        token_scaled=tokens.scaled_Q,
        minima=np.array([minima[name] for name in schema.MINIMA]),
        maxima=np.array([maxima[name] for name in schema.MAXIMA]),
        log_ratio=tokens.log_ratio,
        prob_diff=tokens.prob_diff,
        probs=tokens.probs,
        grid=grid,
        bin_grid=bin_grid,
        bins=tokens.bins,
        lags=tokens.lags,
        lag_grid=_lag_grid(known_lag_V),
        sequence_sums=sequences.sums,
        sequence_scaled=sequences.scaled,
        sequence_grid=sequences.grid,
        length_counts=sequences.length_counts,
        length_sums=sequences.length_sums,
        align=_align(batch, valid),
        worst_upper=_worst(batch, valid, log_ratio_V, sign=1.0),
        worst_lower=_worst(batch, valid, log_ratio_V, sign=-1.0),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Valid:
    """Which tokens and sequences count."""

    index_V: Int64Array | None
    """Indices of the valid tokens in the flat arrays; None: all are."""
    valid_N: BoolArray
    count_B: Int64Array
    """Valid tokens per sequence."""
    complete_B: BoolArray
    counters: dict[str, int]


_FAULTS = (
    "tokens_masked_out",
    "tokens_nonfinite_infer",
    "tokens_nonfinite_train",
    "tokens_positive",
    "tokens_invalid_positive",
    "sequences_incomplete",
    "tokens_kept_post",
    "tokens_with_post",
    "tokens_post_outside",
)


def _validate(batch: Batch) -> _Valid:
    infer_N, train_N = batch.infer_logprobs_N, batch.train_logprobs_N
    if batch.mask_N is None and batch.mask_post_N is None and _all_sound(infer_N, train_N):
        return _all_valid(batch)
    mask_N = np.ones(batch.tokens, np.bool_) if batch.mask_N is None else batch.mask_N
    finite_infer_N, finite_train_N = np.isfinite(infer_N), np.isfinite(train_N)
    tolerance = np.float32(schema.POSITIVE_TOLERANCE)
    highest_N = np.fmax(infer_N, train_N)
    finite_N = finite_infer_N & finite_train_N
    valid_N = mask_N & finite_N & (highest_N <= tolerance)
    masked_B, count_B = _per_sequence(mask_N, batch), _per_sequence(valid_N, batch)
    complete_B = (masked_B > 0) & (count_B == masked_B)
    counters = dict.fromkeys(_FAULTS, 0) | {
        "tokens_total": batch.tokens,
        "tokens_masked_out": int(np.count_nonzero(~mask_N)),
        "tokens_nonfinite_infer": int(np.count_nonzero(mask_N & ~finite_infer_N)),
        "tokens_nonfinite_train": int(np.count_nonzero(mask_N & ~finite_train_N)),
        "tokens_positive": int(np.count_nonzero(valid_N & (highest_N > 0))),
        "tokens_invalid_positive": int(np.count_nonzero(mask_N & finite_N & (highest_N > tolerance))),
        "sequences": int(np.count_nonzero(masked_B > 0)),
        "sequences_incomplete": int(np.count_nonzero((masked_B > 0) & ~complete_B)),
        "sequences_empty": int(np.count_nonzero(masked_B == 0)),
        "seq_ids_duplicate": _duplicates(batch),
    }
    if batch.mask_post_N is not None:
        counters["tokens_kept_post"] = int(np.count_nonzero(valid_N & batch.mask_post_N))
        counters["tokens_with_post"] = int(np.count_nonzero(valid_N))
        counters["tokens_post_outside"] = int(np.count_nonzero(batch.mask_post_N & ~mask_N))
    index_V = None if valid_N.all() else np.flatnonzero(valid_N)
    return _Valid(index_V=index_V, valid_N=valid_N, count_B=count_B, complete_B=complete_B, counters=counters)


def _all_sound(*arrays: NDArray[np.float32]) -> bool:
    """Whether every value is a log-prob: two reductions say so, for NaN wins both."""
    return all(len(x) > 0 and float(x.max()) <= 0 and math.isfinite(float(x.min())) for x in arrays)


def _all_valid(batch: Batch) -> _Valid:
    """The ordinary batch: every token counts."""
    length_B = batch.lengths_B
    there_B = length_B > 0
    counters = dict.fromkeys(_FAULTS, 0) | {
        "tokens_total": batch.tokens,
        "sequences": int(np.count_nonzero(there_B)),
        "sequences_empty": int(np.count_nonzero(~there_B)),
        "seq_ids_duplicate": _duplicates(batch),
    }
    valid_N = np.ones(batch.tokens, np.bool_)
    return _Valid(index_V=None, valid_N=valid_N, count_B=length_B, complete_B=there_B, counters=counters)


def _duplicates(batch: Batch) -> int:
    return 0 if batch.seq_id is None else len(batch.seq_id) - len(set(batch.seq_id))


def _per_sequence(flags_N: BoolArray, batch: Batch) -> Int64Array:
    """[B] how many tokens of each sequence are flagged."""
    before = np.concatenate(([0], np.cumsum(flags_N, dtype=np.int64)))
    return np.diff(before[batch.offsets_B1])


def _lags(batch: Batch, valid: _Valid, tokens: int) -> tuple[Int64Array | None, NDArray[np.intp]]:
    """[V] lag of each valid token in versions, None where it is unknown, and [V] its bucket."""
    if batch.meta.train_version is not None:
        if batch.infer_version_N is not None:
            index_V = valid.index_V
            version_V = batch.infer_version_N if index_V is None else batch.infer_version_N[index_V]
            lag_V = batch.meta.train_version - version_V.astype(np.int64)
            return lag_V, _lag_bucket(lag_V)
        if batch.infer_version_B is not None:
            lag_B = batch.meta.train_version - batch.infer_version_B
            return np.repeat(lag_B, valid.count_B), np.repeat(_lag_bucket(lag_B), valid.count_B)
    return None, np.full(tokens, schema.LAG_UNKNOWN, np.intp)


def _lag_bucket(lag: Int64Array) -> NDArray[np.intp]:
    bucket = np.searchsorted(schema.LAG_EDGES, lag, side="right") - 1
    return np.where(lag < 0, schema.LAG_NEGATIVE, bucket).astype(np.intp)


def _lag_grid(lag_K: Int64Array) -> Grid:
    return Grid.of_dense(np.bincount(np.minimum(lag_K, schema.MAX_LAG_CELL)))


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


def _sequences(
    batch: Batch,
    valid: _Valid,
    infer_V: NDArray[np.float32],
    train_V: NDArray[np.float32],
    log_ratio_V: Float64Array,
) -> Sequences:
    """Sums over each complete sequence."""
    filled = valid.count_B > 0
    starts = (np.cumsum(valid.count_B) - valid.count_B)[filled]
    complete = valid.complete_B[filled]

    def reduce(ufunc: np.ufunc, values: NDArray[np.generic]) -> Float64Array:
        # reduceat runs each segment to the next start: empty sequences must not be among the starts.
        if len(starts) == 0:
            return np.empty(0)
        reduced: Float64Array = ufunc.reduceat(values, starts, dtype=np.float64)[complete]
        return reduced

    sign_B = np.full(batch.sequences, schema.ADVANTAGE_SIGNS.index("unknown"))
    if batch.advantage_B is not None:
        known = np.isfinite(batch.advantage_B)
        sign_B = np.where(known, np.sign(np.where(known, batch.advantage_B, 0)).astype(np.int64) + 1, sign_B)
    return Sequences(
        T_C=valid.count_B[filled][complete],
        S_C=reduce(np.add, log_ratio_V),
        min_C=reduce(np.minimum, log_ratio_V),
        max_C=reduce(np.maximum, log_ratio_V),
        infer_C=reduce(np.add, infer_V),
        train_C=reduce(np.add, train_V),
        sign_C=sign_B[filled][complete].astype(np.int64),
    )


def _align(batch: Batch, valid: _Valid) -> Float64Array:
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


def _worst(batch: Batch, valid: _Valid, log_ratio_V: Float64Array, *, sign: float) -> Worst:
    badness_V = sign * log_ratio_V + 0.0
    picked = worst_indices(badness_V)
    index = picked if valid.index_V is None else valid.index_V[picked]
    row = np.searchsorted(batch.offsets_B1, index, side="right") - 1
    ids = batch.token_ids_N
    return Worst(
        badness=badness_V[picked],
        infer_logprob=batch.infer_logprobs_N[index] + np.float32(0),  # no -0.0 here either
        train_logprob=batch.train_logprobs_N[index] + np.float32(0),
        rank=np.full(len(index), batch.meta.rank, np.int32),
        part=np.full(len(index), batch.meta.part, np.int32),
        row=row.astype(np.int32),
        position=(index - batch.offsets_B1[row]).astype(np.int32),
        token_id=np.full(len(index), -1, np.int64) if ids is None else ids[index].astype(np.int64),
        seq_id=() if len(index) == 0 else tuple("" if batch.seq_id is None else batch.seq_id[r] for r in row),
    )
