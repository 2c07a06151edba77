"""The summary's format, frozen: names, orders and edges change with the version only; vectors grow at their end."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, schema, summarise, to_bytes
from tailwatch_collectors.summary.check import leaves
from tailwatch_collectors.types import BatchMeta

VECTORS = {
    "COUNTERS": (
        "tokens tokens_total tokens_masked_out tokens_nonfinite_infer tokens_nonfinite_train tokens_positive "
        "tokens_invalid_positive tokens_identical tokens_zero_filler tokens_outside_grid tokens_kept_post "
        "tokens_with_post tokens_post_outside tokens_lag_known sequences sequences_complete sequences_incomplete "
        "sequences_empty sequences_outside_2x sequences_outside_5x sequences_geometric_outside seq_ids_duplicate "
        "entropy_tokens infer_entropy_tokens entropy_gap_tokens rewards clusters token_ids_compared "
        "token_ids_mismatched tokens_score sequences_lag_known"
    ),
    "TOKEN_SUMS": (
        "log_ratio_positive log_ratio_negative log_ratio_sq infer_logprob train_logprob entropy infer_entropy "
        "entropy_gap reward lag score_norm_sq fisher_trace lag_oldest"
    ),
    "TOKEN_SCALED": (
        "ratio ratio_sq excess_positive excess_negative excess_sq k3 k3_inverse reverse_k1_positive "
        "reverse_k1_negative reverse_k3 js ratio_abs"
    ),
    "MINIMA": "log_ratio log_ppl_gap lag",
    "MAXIMA": "log_ratio prob_diff_abs log_ppl_gap lag",
    "SEQUENCE_SUMS": "log_ppl_gap log_ppl_gap_abs geometric_log_ratio",
    "SEQUENCE_SCALED": "ratio ratio_sq geometric_ratio infer_ppl train_ppl",
    "LENGTH_SUMS": "T TT logT S SS ST",
    "CLUSTER_TERMS": (
        "log_ratio log_ratio_abs log_ratio_sq k3 k3_inverse reverse_k1 reverse_k3 js ratio ratio_sq excess excess_abs "
        "excess_sq ratio_abs prob_diff_abs infer_logprob train_logprob outside_2x outside_5x"
    ),
    "CLUSTER_SUMS": "sq cross",
    "CLUSTER_EXTRAS": "TT ratio_ratio_sq",
    "EXCEED_SUMS": "sq cross",
    "SLICE_SUMS": "log_ratio_positive log_ratio_negative complement",
    "SLICE_COUNTS": "tokens outside_2x outside_5x",
    "ALIGN_SUMS": "n x y xx yy xy",
}
"""Each may go on after its last name."""

FIXED = {
    "SEQUENCE_GRIDS": "S g z min max",
    "ADVANTAGE_SIGNS": "negative zero positive unknown",
    "LAG_LABELS": "0 1 2 3-4 5-8 9-16 17+ unknown negative",
    "TURN_LABELS": "0 1 2 3 4 5 6 7+ negative",
}
"""Keys and labels are made of these: none may be added within the version."""


def test_vectors_and_their_order() -> None:
    for name, expected in VECTORS.items():
        known = tuple(expected.split())
        assert getattr(schema, name)[: len(known)] == known, name
    for name, expected in FIXED.items():
        assert getattr(schema, name) == tuple(expected.split()), name


def test_vectors_have_no_name_twice() -> None:
    for name in (*VECTORS, *FIXED):
        assert len(set(getattr(schema, name))) == len(getattr(schema, name)), name


def test_version_edges_and_thresholds() -> None:
    assert schema.SUMMARY_VERSION == 1
    assert (schema.MIN_EXPONENT, schema.MAX_EXPONENT) == (-30, 20)
    assert (schema.TOKEN_BITS, schema.BIN_BITS, schema.OCTAVE_BITS) == (7, 5, 0)
    assert schema.SEQUENCE_BITS == {"S": 6, "g": 5, "z": 4, "min": 4, "max": 4}
    assert list(schema.SEQUENCE_BITS) == list(schema.SEQUENCE_GRIDS)
    edges = (0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1)
    assert (*edges, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 1) == schema.PROBABILITY_EDGES
    assert schema.PROBABILITY_LOG_EDGES.dtype == np.float32
    assert schema.PROBABILITY_LOG_EDGES.view(np.uint32).tolist()[:3] == [0xC15D0C55, 0xC13834F1, 0xC1135D8E]
    assert schema.RATIO_THRESHOLDS == (1.05, 1.1, 1.2, 1.28, 1.5, 2, 3, 4, 5, 10, 100)
    assert tuple(range(-24, 8)) == schema.EXCEED_EXPONENTS
    assert schema.LAG_EDGES.tolist() == [0, 1, 2, 3, 5, 9, 17]
    assert (schema.LAG_UNKNOWN, schema.LAG_NEGATIVE, schema.MAX_LAG_CELL) == (7, 8, 65_535)
    assert (schema.LENGTH_BUCKETS, schema.POSITION_BUCKETS, schema.ALIGN_TOKENS) == (32, 24, 64)
    assert (schema.WORST_TOKENS, schema.SAMPLE_TOKENS) == (32, 256)
    assert schema.POSITION_LABELS[:4] == ("0-1", "2-3", "4-7", "8-15")
    assert schema.POSITION_LABELS[-2:] == ("4194304-8388607", "8388608+")
    assert schema.ALIGN_SHIFTS == (-2, -1, 0, 1, 2)
    assert (schema.POSITIVE_TOLERANCE, schema.FILLER_BELOW) == (1e-3, -1e-3)
    assert (schema.CLUSTER_CLIP, schema.MIN_SCORE_NORM_SQ, schema.OTHER) == (150.0, 1e-12, "(other)")
    assert (schema.SLICE_LIMITS) == {
        "position": 24,
        "lag": 9,
        "turn": 9,
        "advantage": 4,
        "source": 32,
        "rank": 64,
        "replica": 64,
    }


def test_layout_of_the_bytes() -> None:
    layout = layout_of(Summary.empty())
    assert len(layout) == 78
    assert digest(layout) == "aa144668c432478d46776de54e7b3ed4f23d59eab07ffd207134d983989417dc"
    assert to_bytes(Summary.empty())[:4] == b"TWS\1"
    one = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0]], train_logprobs=[[-1.5]])
    slices = [row for row in layout_of(summarise(one)) if row[0].startswith("summary.slices.lag.")]
    assert len(slices) == 13
    assert digest(slices) == "6bafc5f8d4b19f3639b0d870bbfb0473cae7106b45287b4d33efe320e13e19b2"


def layout_of(summary: Summary) -> list[list[str]]:
    return [
        [path, "names" if isinstance(value, tuple) else f"{value.dtype.str}{list(value.shape)}"]
        for path, value in leaves(summary)
    ]


def digest(layout: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()
