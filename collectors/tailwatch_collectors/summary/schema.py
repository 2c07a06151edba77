"""What a summary holds: edges, thresholds, and the order of every vector in it.

The format of the summary (version 1, docs/summary-format.md) is defined here and nowhere else: changing a line
changes the format. Within a version a vector may only grow at its end.
"""

from __future__ import annotations

import numpy as np

SUMMARY_VERSION = 1
"""Frozen; 0 was the format before the slices, and is no longer read."""

# --- the grid of log ratios ---

MIN_EXPONENT = -30
"""|d| below 2^-30 reads 0."""
MAX_EXPONENT = 20
"""|d| of 2^20 and above is out of the grid: one cell at each end, and a validity counter."""
TOKEN_BITS = 7
"""Mantissa bits of the unsliced grid: 0.39 % value error at every quantile."""
BIN_BITS = 5
"""Mantissa bits of the grid per probability bin: 1.6 %."""

# --- slices ---

PROBABILITY_EDGES = (
    0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1,
    0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 1.0,
)  # fmt: skip
"""Edges of the inference-probability bins."""

PROBABILITY_LOG_EDGES = np.log(np.array(PROBABILITY_EDGES[1:-1])).astype(np.float32)
"""The inner edges as float32 log-probs: what tokens are compared with, so that a bin is bit-exact."""

PROBABILITY_BINS = len(PROBABILITY_EDGES) - 1

POSITION_BUCKETS = 24
"""Positions within the response, by floor(log2 t); t = 0 and 1 share the first bucket."""
POSITION_LABELS = (
    "0-1",
    *(f"{2**k}-{2 ** (k + 1) - 1}" for k in range(1, POSITION_BUCKETS - 1)),
    f"{2 ** (POSITION_BUCKETS - 1)}+",
)

LAG_LABELS = ("0", "1", "2", "3-4", "5-8", "9-16", "17+", "unknown", "negative")
"""Buckets of policy lag in versions."""
LAG_EDGES = np.array([0, 1, 2, 3, 5, 9, 17], np.int64)
"""First lag of each known bucket."""
LAG_UNKNOWN = 7
LAG_NEGATIVE = 8
MAX_LAG_CELL = 65_535
"""Lags above this share one cell of the lag histogram."""

TURN_LABELS = ("0", "1", "2", "3", "4", "5", "6", "7+", "negative")
"""Turns of a conversation."""

ADVANTAGE_SIGNS = ("negative", "zero", "positive", "unknown")
"""Sign of the advantage of a token; unknown where none was sent, or a NaN."""

SLICE_LIMITS = {"position": 24, "lag": 9, "turn": 9, "advantage": 4, "source": 32, "rank": 64, "replica": 64}
"""Slices by name, and how many buckets each keeps by name; the rest shares the bucket OTHER."""
MAX_SLICES = 16
MAX_SLICE_BUCKETS = 256
"""What a reader accepts of slices it does not know."""
OTHER = "(other)"
"""The bucket of names beyond the limit: those of the largest hash, so that the order of arrival does not matter."""
OCTAVE_BITS = 0
"""Mantissa bits of the histogram of d per slice bucket: one cell per octave."""

LENGTH_BUCKETS = 32
"""Sequence lengths by floor(log2 T)."""

# --- thresholds ---

RATIO_THRESHOLDS = (1.05, 1.1, 1.2, 1.28, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 100.0)
"""Ratios C whose exceedances of w and of 1/w are counted exactly; any other C comes from the grid."""
LOG_RATIO_THRESHOLDS = np.log(np.array(RATIO_THRESHOLDS))

POSITIVE_TOLERANCE = 1e-3
"""A log-prob in (0, 1e-3] is rounding: kept and counted. Above it is not a log-prob: counted, kept out of sums."""
FILLER_BELOW = -1e-3
"""Exactly one side 0.0 and the other below this: a zero written where no log-prob was."""

ALIGN_SHIFTS = (-2, -1, 0, 1, 2)
ALIGN_TOKENS = 64
"""Tokens at the head of each sequence over which alignment is tested."""
ALIGN_SUMS = ("n", "x", "y", "xx", "yy", "xy")

WORST_TOKENS = 32
"""Worst tokens kept at each end."""
SAMPLE_TOKENS = 256
"""Tokens of the random sample, where one is asked for."""

# --- vectors ---

COUNTERS = (
    "tokens",  # counted: in the mask and valid
    "tokens_total",  # received, masked ones included
    "tokens_masked_out",
    "tokens_nonfinite_infer",  # in the mask
    "tokens_nonfinite_train",
    "tokens_positive",  # in (0, 1e-3]; counted and kept
    "tokens_invalid_positive",  # above 1e-3; counted and kept out
    "tokens_identical",  # d == 0
    "tokens_zero_filler",
    "tokens_outside_grid",  # |d| >= 2^20
    "tokens_kept_post",  # left after rejection, where mask_post was sent
    "tokens_with_post",  # counted tokens of batches that sent mask_post
    "tokens_post_outside",  # in mask_post but not in mask
    "tokens_lag_known",
    "sequences",  # with at least one token in the mask
    "sequences_complete",  # of these, all tokens valid: the unit of sequence statistics
    "sequences_incomplete",
    "sequences_empty",  # no token in the mask
    "sequences_outside_2x",  # |S| > ln 2
    "sequences_outside_5x",
    "sequences_geometric_outside",  # |g| > ln 1.001
    "seq_ids_duplicate",
    "entropy_tokens",
    "infer_entropy_tokens",
    "entropy_gap_tokens",
    "rewards",
    "clusters",  # sequences with at least one valid token: the unit of the intervals
    "token_ids_compared",  # counted tokens with an id from both sides
    "token_ids_mismatched",
    "tokens_score",  # counted tokens with a usable sum_p2_other
    "sequences_lag_known",  # with a counted token of known lag
)
"""Exact counts."""

TOKEN_SUMS = (
    "log_ratio_positive",  # sum of d where d > 0
    "log_ratio_negative",  # sum of -d where d < 0
    "log_ratio_sq",
    "infer_logprob",
    "train_logprob",
    "entropy",
    "infer_entropy",
    "entropy_gap",  # train - infer, where both are there
    "reward",
    "lag",  # versions, non-negative ones
    "score_norm_sq",  # (1 - p)^2 + sum_p2_other, p of the training policy
    "fisher_trace",  # 1 - p^2 - sum_p2_other
    "lag_oldest",  # over sequences: the largest known lag among their counted tokens
)
"""Plain float64 sums."""

TOKEN_SCALED = (
    "ratio",  # w
    "ratio_sq",  # w^2
    "excess_positive",  # expm1(d) where d > 0
    "excess_negative",  # -expm1(d) where d < 0
    "excess_sq",  # expm1(d)^2
    "k3",  # e^d - 1 - d
    "k3_inverse",  # e^-d - 1 + d
    "reverse_k1_positive",  # w d where d > 0
    "reverse_k1_negative",  # -w d where d < 0
    "reverse_k3",  # w d - w + 1
    "js",
    "ratio_abs",  # e^|d|
)
"""Sums of exponentials of d, kept as mantissa and exponent."""

MINIMA = ("log_ratio", "log_ppl_gap", "lag")
MAXIMA = ("log_ratio", "prob_diff_abs", "log_ppl_gap", "lag")

SEQUENCE_SUMS = ("log_ppl_gap", "log_ppl_gap_abs", "geometric_log_ratio")
SEQUENCE_SCALED = ("ratio", "ratio_sq", "geometric_ratio", "infer_ppl", "train_ppl")
LENGTH_SUMS = ("T", "TT", "logT", "S", "SS", "ST")
SEQUENCE_GRIDS = ("S", "g", "z", "min", "max")
SEQUENCE_BITS = {"S": 6, "g": 5, "z": 4, "min": 4, "max": 4}
"""Mantissa bits of the sequence grids: weights e^S are made from S, the others are compared with thresholds."""

CLUSTER_TERMS = (
    "log_ratio",
    "log_ratio_abs",
    "log_ratio_sq",
    "k3",
    "k3_inverse",
    "reverse_k1",
    "reverse_k3",
    "js",
    "ratio",
    "ratio_sq",
    "excess",
    "excess_abs",
    "excess_sq",
    "ratio_abs",
    "prob_diff_abs",
    "infer_logprob",
    "train_logprob",
    "outside_2x",
    "outside_5x",
)
"""Terms whose sum A over a sequence is kept as sums over sequences of A^2 and A T: intervals come from them."""
CLUSTER_SUMS = ("sq", "cross")  # A^2, A T
CLUSTER_EXTRAS = ("TT", "ratio_ratio_sq")  # T^2, and (sum of w)(sum of w^2)
CLUSTER_CLIP = 150.0
"""Exponentials of d beyond this count as at this in the cluster sums, so that their squares stay in float64; where
such a token exists the metric has no interval."""
EXCEED_EXPONENTS = tuple(range(-24, 8))
"""Levels 2^k at which tokens of a sequence with d >= 2^k, and with d <= -2^k, are counted per sequence."""
EXCEED_SUMS = ("sq", "cross")  # n^2, n T
MIN_SCORE_NORM_SQ = 1e-12
"""Below it a token's gradient is rounding: it leaves the residual."""

SLICE_SUMS = ("log_ratio_positive", "log_ratio_negative", "complement")
"""Per bucket; `complement` is the sum of 1 - p_infer."""
SLICE_COUNTS = ("tokens", "outside_2x", "outside_5x")
