"""The summary's format, frozen: changing a name, an order or an edge needs a new version."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from tailwatch_collectors.summary import Summary, schema, to_bytes
from tailwatch_collectors.summary.check import leaves

VECTORS = {
    "COUNTERS": (
        "tokens tokens_total tokens_masked_out tokens_nonfinite_infer tokens_nonfinite_train tokens_positive "
        "tokens_invalid_positive tokens_identical tokens_zero_filler tokens_outside_grid tokens_kept_post "
        "tokens_with_post tokens_post_outside tokens_lag_known sequences sequences_complete sequences_incomplete "
        "sequences_empty sequences_outside_2x sequences_outside_5x sequences_geometric_outside seq_ids_duplicate "
        "entropy_tokens infer_entropy_tokens entropy_gap_tokens rewards"
    ),
    "TOKEN_SUMS": (
        "log_ratio_positive log_ratio_negative log_ratio_sq infer_logprob train_logprob entropy infer_entropy "
        "entropy_gap reward lag"
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
    "SEQUENCE_GRIDS": "S g z min max",
    "ADVANTAGE_SIGNS": "negative zero positive unknown",
    "SLICE_SUMS": "log_ratio_positive log_ratio_negative complement",
    "SLICE_COUNTS": "tokens outside_2x outside_5x",
    "ALIGN_SUMS": "n x y xx yy xy",
    "LAG_LABELS": "0 1 2 3-4 5-8 9-16 17+ unknown negative",
}


def test_vectors_and_their_order() -> None:
    for name, expected in VECTORS.items():
        assert getattr(schema, name) == tuple(expected.split()), name


def test_version_edges_and_thresholds() -> None:
    assert schema.SUMMARY_VERSION == 0
    assert (schema.MIN_EXPONENT, schema.MAX_EXPONENT) == (-30, 20)
    assert (schema.TOKEN_BITS, schema.BIN_BITS, tuple(schema.SEQUENCE_BITS.values())) == (7, 5, (6, 5, 4, 4, 4))
    edges = (0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1)
    assert (*edges, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 1) == schema.PROBABILITY_EDGES
    assert schema.PROBABILITY_LOG_EDGES.dtype == np.float32
    assert schema.RATIO_THRESHOLDS == (1.05, 1.1, 1.2, 1.28, 1.5, 2, 3, 4, 5, 10, 100)
    assert schema.LAG_EDGES.tolist() == [0, 1, 2, 3, 5, 9, 17]
    assert (schema.LAG_UNKNOWN, schema.LAG_NEGATIVE, schema.MAX_LAG_CELL) == (7, 8, 65_535)
    assert (schema.LENGTH_BUCKETS, schema.WORST_TOKENS, schema.ALIGN_TOKENS) == (32, 32, 64)
    assert schema.ALIGN_SHIFTS == (-2, -1, 0, 1, 2)
    assert (schema.POSITIVE_TOLERANCE, schema.FILLER_BELOW) == (1e-3, -1e-3)


def test_layout_of_the_bytes() -> None:
    layout = [
        [path, "names" if isinstance(value, tuple) else f"{value.dtype.str}{list(value.shape)}"]
        for path, value in leaves(Summary.empty())
    ]
    assert len(layout) == 70
    digest = hashlib.sha256(json.dumps(layout).encode()).hexdigest()
    assert digest == "64686e5e1bbd7773e4518d37c1530232b968a4d2e00d0c655d41b6da90c17b0f"
    assert to_bytes(Summary.empty())[:4] == b"TWS\0"
