"""Which tokens of a batch count. What does not is counted by its fault, never folded into a sum.

A token counts if it is in the mask, both log-probs are finite, and neither is above the tolerance. A sequence is
complete if all its tokens in the mask count: only then is its sum of log ratios that of the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Valid:
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


def validate(batch: Batch) -> Valid:
    """Which tokens and sequences of a batch count, and what is wrong with the others."""
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
        "clusters": int(np.count_nonzero(count_B)),
    }
    if batch.mask_post_N is not None:
        counters["tokens_kept_post"] = int(np.count_nonzero(valid_N & batch.mask_post_N))
        counters["tokens_with_post"] = int(np.count_nonzero(valid_N))
        counters["tokens_post_outside"] = int(np.count_nonzero(batch.mask_post_N & ~mask_N))
    index_V = None if valid_N.all() else np.flatnonzero(valid_N)
    return Valid(index_V=index_V, valid_N=valid_N, count_B=count_B, complete_B=complete_B, counters=counters)


def _all_sound(*arrays: NDArray[np.float32]) -> bool:
    """Whether every value is a log-prob: two reductions say so, for NaN wins both."""
    return all(len(x) > 0 and float(x.max()) <= 0 and math.isfinite(float(x.min())) for x in arrays)


def _all_valid(batch: Batch) -> Valid:
    """The ordinary batch: every token counts."""
    length_B = batch.lengths_B
    there_B = length_B > 0
    counters = dict.fromkeys(_FAULTS, 0) | {
        "tokens_total": batch.tokens,
        "sequences": int(np.count_nonzero(there_B)),
        "sequences_empty": int(np.count_nonzero(~there_B)),
        "seq_ids_duplicate": _duplicates(batch),
        "clusters": int(np.count_nonzero(there_B)),
    }
    valid_N = np.ones(batch.tokens, np.bool_)
    return Valid(index_V=None, valid_N=valid_N, count_B=length_B, complete_B=there_B, counters=counters)


def _duplicates(batch: Batch) -> int:
    return 0 if batch.seq_id is None else len(batch.seq_id) - len(set(batch.seq_id))


def _per_sequence(flags_N: BoolArray, batch: Batch) -> Int64Array:
    """[B] how many tokens of each sequence are flagged."""
    before = np.concatenate(([0], np.cumsum(flags_N, dtype=np.int64)))
    return np.diff(before[batch.offsets_B1])
