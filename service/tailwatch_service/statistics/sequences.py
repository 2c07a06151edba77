"""Over complete sequences: perplexities, product and geometric ratios, and how their spread grows with length."""

from __future__ import annotations

import math

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tailwatch_service.statistics.values import (
    NO_SEQUENCES,
    NO_TOKENS,
    Value,
    finite,
    ratio,
    sequence_mean,
)

_MIN_BUCKET = 8
_MIN_BUCKETS = 3
_ROUNDING = 1e-12


def sequences(summary: Summary) -> dict[str, Value]:
    """Sequence-level metrics, and the means of log-probs and entropies that belong beside them."""
    complete = summary.count("sequences_complete")
    mean = sequence_mean(summary)
    gap = schema.SEQUENCE_SUMS.index("log_ppl_gap")
    gap_abs = schema.SEQUENCE_SUMS.index("log_ppl_gap_abs")
    low = float(summary.minima[schema.MINIMA.index("log_ppl_gap")])
    high = float(summary.maxima[schema.MAXIMA.index("log_ppl_gap")])
    squared = schema.SEQUENCE_SCALED.index("ratio_sq")
    found: dict[str, Value] = {
        name: finite(value) if complete else NO_SEQUENCES
        for name, value in {
            "infer_ppl": mean("infer_ppl"),
            "train_ppl": mean("train_ppl"),
            "log_ppl_gap": float(summary.sequence_sums[gap]) / max(complete, 1),
            "log_ppl_gap_abs": float(summary.sequence_sums[gap_abs]) / max(complete, 1),
            "log_ppl_gap_min": low,
            "log_ppl_gap_max": high,
            "geometric_ratio_mean": mean("geometric_ratio"),
            "chi2_sequence_log10p1": (summary.sequence_scaled.log(squared) - math.log(max(complete, 1))) / math.log(10),
        }.items()
    }
    for name in ("sequences_outside_2x", "sequences_outside_5x", "sequences_geometric_outside"):
        found[f"{name}_share"] = ratio(summary.count(name), complete, NO_SEQUENCES)
    found["length_scaling"], found["length_scaling_se"] = _length_scaling(summary)
    found["infer_logprob_mean"] = ratio(summary.token_sum("infer_logprob"), summary.tokens, NO_TOKENS)
    found["train_logprob_mean"] = ratio(summary.token_sum("train_logprob"), summary.tokens, NO_TOKENS)
    for name, source in (
        ("entropy_train", "entropy"),
        ("entropy_infer", "infer_entropy"),
        ("entropy_gap", "entropy_gap"),
    ):
        sent = summary.count(f"{source}_tokens")
        found[name] = ratio(summary.token_sum(source), sent, "the trainer sent no entropies")
    found["reward_mean"] = ratio(summary.token_sum("reward"), summary.count("rewards"), "the trainer sent no rewards")
    return found


def _length_scaling(summary: Summary) -> tuple[Value, Value]:
    """Slope of log E[R^2] on log T, R = S - T mean(d): 1 for independent noise, 2 for an offset per sequence.

    Weighted by sequences; the standard error takes log E[R^2] of n Gaussian sequences to have variance 2 / n.
    """
    enough = summary.length_counts >= _MIN_BUCKET
    column = {name: summary.length_sums[enough, index] for index, name in enumerate(schema.LENGTH_SUMS)}
    n = summary.length_counts[enough].astype(np.float64)
    mean = float(summary.log_ratio.mean)
    squares = column["SS"] - 2 * mean * column["ST"] + mean * mean * column["TT"]
    # The bias is subtracted from sums of squares: below 1e-12 of them nothing but rounding is left.
    usable = squares > _ROUNDING * column["SS"]
    if int(usable.sum()) < _MIN_BUCKETS:
        reason = f"{int(usable.sum())} length buckets with {_MIN_BUCKET} sequences that differ, needs {_MIN_BUCKETS}"
        return reason, reason
    n, x, y = n[usable], (column["logT"][usable] / n[usable]), np.log(squares[usable] / n[usable])
    x = x - (n * x).sum() / n.sum()
    spread = float((n * x * x).sum())
    return finite(float((n * x * y).sum()) / spread), finite(math.sqrt(2 / spread))
