"""Data quality: what was received but could not be counted, and what looks as if it should not be. The first
diagnosis of every incident."""

from __future__ import annotations

import math

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tailwatch_service.statistics.values import NO_TOKENS, Value, ratio

_ALIGN_MIN_CORRELATION = 0.8
_ALIGN_MIN_GAIN = 0.2
_ALIGN_MIN_PAIRS = 50


def validity(summary: Summary) -> dict[str, Value]:
    """Counters, shares, alignment and agreement of token ids."""
    count = summary.count
    tokens = summary.tokens
    received = count("tokens_total")
    nonfinite_or_positive = received - count("tokens_masked_out") - tokens
    align_lag, align_corr = _alignment(summary)
    return {
        "tokens": float(tokens),
        "tokens_total": float(received),
        "sequences": float(summary.sequences),
        "sequences_incomplete": float(count("sequences_incomplete")),
        "sequences_empty": float(count("sequences_empty")),
        "tokens_nonfinite_infer": float(count("tokens_nonfinite_infer")),
        "tokens_nonfinite_train": float(count("tokens_nonfinite_train")),
        "tokens_positive": float(count("tokens_positive")),
        "tokens_invalid_positive": float(count("tokens_invalid_positive")),
        "tokens_outside_grid": float(count("tokens_outside_grid")),
        "tokens_post_outside": float(count("tokens_post_outside")),
        "seq_ids_duplicate": float(count("seq_ids_duplicate")),
        "invalid_share": ratio(nonfinite_or_positive, nonfinite_or_positive + tokens, "no tokens in the mask"),
        "masked_share": ratio(count("tokens_masked_out"), received, "no tokens received"),
        "rejected_share": ratio(
            count("tokens_with_post") - count("tokens_kept_post"), count("tokens_with_post"), "mask_post was not sent"
        ),
        "identical_share": ratio(count("tokens_identical"), tokens, NO_TOKENS),
        "zero_filler_share": ratio(count("tokens_zero_filler"), tokens, NO_TOKENS),
        "align_lag": align_lag,
        "align_corr": align_corr,
        "token_id_mismatch_share": ratio(
            count("token_ids_mismatched"), count("token_ids_compared"), "token ids were not sent by both sides"
        ),
    }


def _alignment(summary: Summary) -> tuple[Value, Value]:
    """The shift s that correlates infer_t best with train_(t+s), if it is clear, else 0; and its correlation."""
    correlations = [_correlation(*map(float, row)) for row in summary.align]
    here = correlations[schema.ALIGN_SHIFTS.index(0)]
    if math.isnan(here):
        reason = f"under {_ALIGN_MIN_PAIRS} pairs of tokens that vary"
        return reason, reason
    best = int(np.nanargmax(correlations))
    clear = correlations[best] > _ALIGN_MIN_CORRELATION and correlations[best] - here > _ALIGN_MIN_GAIN
    chosen = best if clear else schema.ALIGN_SHIFTS.index(0)
    return float(schema.ALIGN_SHIFTS[chosen]), correlations[chosen]


def _correlation(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float:
    if n < _ALIGN_MIN_PAIRS:
        return math.nan
    # Raw sums leave rounding of about 1e-16 of the squares; a spread below 1e-12 of them is none.
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    if spread_x <= 1e-12 * xx or spread_y <= 1e-12 * yy:
        return math.nan
    return max(-1.0, min(1.0, (xy - x * y / n) / math.sqrt(spread_x * spread_y)))
