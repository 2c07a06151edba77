"""Of d and w = e^d over tokens: moments, quantiles, shares outside thresholds, and distances of probabilities."""

from __future__ import annotations

import math

from tailwatch_collectors.summary import Summary, schema
from tailwatch_service.statistics.quantiles import QUANTILES, grid_quantile
from tailwatch_service.statistics.values import NO_TOKENS, Value, finite, ratio, token_mean

_ROUNDING = 1e-13
"""A relative spread below this is what rounding leaves of equal values."""


def ratios(summary: Summary) -> dict[str, Value]:
    """Metrics of the log ratio and of the ratio."""
    tokens = summary.tokens
    mean = token_mean(summary)
    low = float(summary.minima[schema.MINIMA.index("log_ratio")])
    high = float(summary.maxima[schema.MAXIMA.index("log_ratio")])
    positive, negative = summary.token_sum("log_ratio_positive"), summary.token_sum("log_ratio_negative")
    found: dict[str, Value] = {
        "log_ratio_mean": ratio(positive - negative, tokens, NO_TOKENS),
        "log_ratio_abs_mean": ratio(positive + negative, tokens, NO_TOKENS),
        "log_ratio_std": _sqrt_ratio(float(summary.log_ratio.m2), tokens),
        "log_ratio_min": low if tokens else NO_TOKENS,
        "log_ratio_max": high if tokens else NO_TOKENS,
        "ratio_mean": finite(mean("ratio")) if tokens else NO_TOKENS,
        "ratio_min": finite(_exp(low)) if tokens else NO_TOKENS,
        "ratio_max": finite(_exp(high)) if tokens else NO_TOKENS,
        "tv": finite((mean("excess_positive") + mean("excess_negative")) / 2) if tokens else NO_TOKENS,
        "mult_prob_error": finite(mean("ratio_abs")) if tokens else NO_TOKENS,
    }
    for suffix in QUANTILES:
        found[f"log_ratio_q{suffix}"] = log_ratio_quantile(summary, suffix) if tokens else NO_TOKENS
    for name, threshold in (("outside_2x", 2.0), ("outside_5x", 5.0)):
        index = schema.RATIO_THRESHOLDS.index(threshold)
        found[name] = ratio(int(summary.above[index] + summary.below[index]), tokens, NO_TOKENS)
    for index, threshold in enumerate(schema.RATIO_THRESHOLDS):
        label = threshold_label(threshold)
        found[f"above_{label}"] = ratio(int(summary.above[index]), tokens, NO_TOKENS)
        found[f"below_1_over_{label}"] = ratio(int(summary.below[index]), tokens, NO_TOKENS)
    return found | _probabilities(summary)


def log_ratio_quantile(summary: Summary, suffix: str) -> float:
    """One of QUANTILES of d; NaN where there are no tokens."""
    low = float(summary.minima[schema.MINIMA.index("log_ratio")])
    high = float(summary.maxima[schema.MAXIMA.index("log_ratio")])
    return grid_quantile(summary.grid, QUANTILES[suffix], bits=schema.TOKEN_BITS, low=low, high=high)


def threshold_label(threshold: float) -> str:
    """2.0 -> `2`, 1.28 -> `1_28`."""
    return f"{threshold:g}".replace(".", "_")


def _probabilities(summary: Summary) -> dict[str, Value]:
    """Of p = e^pi and q = e^mu (verl's debug metrics)."""
    tokens = summary.tokens
    probs = summary.probs
    varies = all(
        float(m2) > int(probs.n) * (_ROUNDING * float(mean)) ** 2
        for m2, mean in ((probs.m2_x, probs.mean_x), (probs.m2_y, probs.mean_y))
    )
    high = float(summary.maxima[schema.MAXIMA.index("prob_diff_abs")])
    correlation: Value = "the probabilities do not vary"
    if varies:
        correlation = finite(float(probs.c_xy) / math.sqrt(float(probs.m2_x)) / math.sqrt(float(probs.m2_y)))
    return {
        "prob_diff_abs_mean": float(summary.prob_diff.mean) if tokens else NO_TOKENS,
        "prob_diff_abs_max": high if tokens else NO_TOKENS,
        "prob_diff_abs_std": _sqrt_ratio(float(summary.prob_diff.m2), tokens),
        "prob_pearson": max(-1.0, min(1.0, correlation)) if isinstance(correlation, float) else correlation,
    }


def _sqrt_ratio(m2: float, tokens: int) -> Value:
    return finite(math.sqrt(m2 / tokens)) if tokens else NO_TOKENS


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
