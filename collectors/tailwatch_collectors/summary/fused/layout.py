"""Where each number of the pass stands: columns shared by the compiled code and by what reads its results.

Shapes: B sequences, C chunks, R buckets.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import cell_count

BLOCK: Final = 4_096
"""Tokens of a block: its arrays stay in the fastest caches."""
CHUNK: Final = 32_768
"""Tokens after which a chunk ends, with its last sequence: what one thread takes at a time, however many there are."""

# --- per sequence: [B, ROW] ---
ROW_NAMES: Final = (
    *schema.CLUSTER_TERMS,
    "log_ratio_positive",
    "log_ratio_negative",
    "complement",
    "k3_slice",  # without tokens of |d| > CLUSTER_CLIP
    "k3_mantissa",  # of those
    "k3_exponent",
    "m2",
    "min",
    "max",
    "oldest",  # one more than the largest known lag, 0 where none is known; of lags per token
)
ROW: Final = len(ROW_NAMES)
_TERMS = schema.CLUSTER_TERMS.index
TERM_LOG_RATIO: Final = _TERMS("log_ratio")
TERM_LOG_RATIO_ABS: Final = _TERMS("log_ratio_abs")
TERM_LOG_RATIO_SQ: Final = _TERMS("log_ratio_sq")
TERM_K3: Final = _TERMS("k3")
TERM_K3_INVERSE: Final = _TERMS("k3_inverse")
TERM_REVERSE_K1: Final = _TERMS("reverse_k1")
TERM_REVERSE_K3: Final = _TERMS("reverse_k3")
TERM_JS: Final = _TERMS("js")
TERM_RATIO: Final = _TERMS("ratio")
TERM_RATIO_SQ: Final = _TERMS("ratio_sq")
TERM_EXCESS: Final = _TERMS("excess")
TERM_EXCESS_ABS: Final = _TERMS("excess_abs")
TERM_EXCESS_SQ: Final = _TERMS("excess_sq")
TERM_RATIO_ABS: Final = _TERMS("ratio_abs")
TERM_PROB_DIFF: Final = _TERMS("prob_diff_abs")
TERM_INFER: Final = _TERMS("infer_logprob")
TERM_TRAIN: Final = _TERMS("train_logprob")
TERM_OUTSIDE_2X: Final = _TERMS("outside_2x")
TERM_OUTSIDE_5X: Final = _TERMS("outside_5x")
ROW_POSITIVE: Final = ROW_NAMES.index("log_ratio_positive")
ROW_NEGATIVE: Final = ROW_NAMES.index("log_ratio_negative")
ROW_COMPLEMENT: Final = ROW_NAMES.index("complement")
ROW_K3: Final = ROW_NAMES.index("k3_slice")
ROW_MANTISSA: Final = ROW_NAMES.index("k3_mantissa")
ROW_EXPONENT: Final = ROW_NAMES.index("k3_exponent")
ROW_M2: Final = ROW_NAMES.index("m2")
ROW_MIN: Final = ROW_NAMES.index("min")
ROW_MAX: Final = ROW_NAMES.index("max")
ROW_OLDEST: Final = ROW_NAMES.index("oldest")

# --- per sequence: [B, 2] counts ---
MASKED: Final = 0
"""Tokens in the mask."""
VALID: Final = 1

# --- per bucket: [R, STAT] ---
STAT: Final = 13
STAT_N: Final = 0
STAT_OUTSIDE_2X: Final = 1
STAT_OUTSIDE_5X: Final = 2
STAT_POSITIVE: Final = 3
STAT_NEGATIVE: Final = 4
STAT_COMPLEMENT: Final = 5
STAT_MEAN: Final = 6
STAT_M2: Final = 7
STAT_K3: Final = 8
STAT_MANTISSA: Final = 9
STAT_EXPONENT: Final = 10
STAT_MIN: Final = 11
STAT_MAX: Final = 12

# --- per chunk ---
SCALED: Final = len(schema.TOKEN_SCALED)
TOTAL_NAMES: Final = (
    *schema.TOKEN_SCALED,
    "log_ratio_positive",
    "log_ratio_negative",
    "log_ratio_sq",
    "infer_logprob",
    "train_logprob",
)
TOTAL: Final = len(TOTAL_NAMES)
MOMENT_NAMES: Final = (
    "n", "mean_d", "m2_d", "mean_gap", "m2_gap", "mean_train", "mean_infer", "m2_train", "m2_infer", "c", "gap_max",
)  # fmt: skip
"""Of d, of |p_train - p_infer|, and of (p_train, p_infer)."""
MOMENT: Final = len(MOMENT_NAMES)
EXTRA_NAMES: Final = (
    "entropy_tokens", "entropy", "infer_entropy_tokens", "infer_entropy", "entropy_gap_tokens", "entropy_gap",
    "score_tokens", "score_norm_sq", "fisher_trace", "residual_n", "residual_mean", "residual_m2",
    "lag", "lag_min", "lag_max",
)  # fmt: skip
EXTRA: Final = len(EXTRA_NAMES)
LAGS: Final = EXTRA_NAMES.index("lag")

# --- per worker: exact counts ---
FAULT_NAMES: Final = (
    "tokens_masked_out",
    "tokens_nonfinite_infer",
    "tokens_nonfinite_train",
    "tokens_positive",
    "tokens_invalid_positive",
    "tokens_kept_post",
    "tokens_with_post",
    "tokens_post_outside",
    "tokens_identical",
    "tokens_zero_filler",
    "tokens_outside_grid",
    "token_ids_compared",
    "token_ids_mismatched",
)
FAULTS: Final = len(FAULT_NAMES)
MASKED_OUT: Final = 0
NONFINITE_INFER: Final = 1
NONFINITE_TRAIN: Final = 2
POSITIVE: Final = 3
INVALID_POSITIVE: Final = 4
KEPT_POST: Final = 5
WITH_POST: Final = 6
POST_OUTSIDE: Final = 7
IDENTICAL: Final = 8
ZERO_FILLER: Final = 9
OUTSIDE_GRID: Final = 10
IDS_COMPARED: Final = 11
IDS_MISMATCHED: Final = 12

# --- properties that tokens may have one by one ---
BY_ADVANTAGE: Final = 0
BY_LAG: Final = 1
BY_TURN: Final = 2
PROPERTY_NAMES: Final = ("advantage", "lag", "turn")
PROPERTIES: Final = len(PROPERTY_NAMES)
LAST_TURN: Final = schema.TURN_LABELS.index("7+")
UNKNOWN_SIGN: Final = schema.ADVANTAGE_SIGNS.index("unknown")

# --- grids ---
CELLS: Final = cell_count(schema.TOKEN_BITS)
BIN_CELLS: Final = cell_count(schema.BIN_BITS)
OCTAVES: Final = cell_count(schema.OCTAVE_BITS)
BINS: Final = schema.PROBABILITY_BINS
POSITIONS: Final = schema.POSITION_BUCKETS
LEVELS: Final = len(schema.EXCEED_EXPONENTS)
FIRST_LEVEL: Final = schema.EXCEED_EXPONENTS[0] - schema.MIN_EXPONENT
"""Octave cells between zero's and the first level's."""
PICKS: Final = schema.WORST_TOKENS

# --- probability bins ---
EDGE_SHIFT: Final = 19
"""Bits of a float32 log-prob below its sign, exponent and 4 bits: no two edges share the rest."""


def edge_table() -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """By the bits of |log-prob| above EDGE_SHIFT: the bin of the smallest log-prob, and the edge above it."""
    keys = 1 << (31 - EDGE_SHIFT)
    lowest = -((np.arange(1, keys + 1) << EDGE_SHIFT) - 1).astype(np.uint32).view(np.float32)
    edges = schema.PROBABILITY_LOG_EDGES
    first_bin = np.searchsorted(edges, np.where(np.isnan(lowest), -np.inf, lowest), side="right").astype(np.int32)
    edge = np.full(keys, np.inf, np.float32)
    edge[edges.view(np.int32) >> EDGE_SHIFT & (keys - 1)] = edges
    return first_bin, edge


# --- levels of detail: what a benchmark tells apart ---
UNSLICED: Final = 0
WITH_BINS: Final = 1
ALL: Final = 2
