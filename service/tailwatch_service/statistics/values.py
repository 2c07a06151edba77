"""What a metric can be: a finite number, or a reason why it does not exist. Never 0 for empty, never NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.scaled import ScaledSums

Value = float | str
"""A finite value, or the reason it is missing."""

NO_TOKENS = "no valid tokens"
NO_SEQUENCES = "no complete sequences"
NO_VERSIONS = "weight versions were not sent"


def finite(value: float) -> Value:
    """The value itself, or a reason where it is not a finite number."""
    if math.isfinite(value):
        return value
    return "exceeds float64" if math.isinf(value) else "not defined on these tokens"


def ratio(numerator: float, denominator: float, reason: str) -> Value:
    """numerator / denominator, or `reason` where there is nothing to divide by."""
    return finite(numerator / denominator) if denominator > 0 else reason


def scaled_mean(sums: ScaledSums, index: int, count: int) -> float:
    """One scaled sum over `count`; inf where it exceeds float64, NaN where count is 0."""
    if count == 0:
        return math.nan
    mantissa, shift = math.frexp(float(sums.mantissa[index]) / count)
    try:
        return math.ldexp(mantissa, shift + int(sums.exponent[index]))
    except OverflowError:
        return math.inf


def token_mean(summary: Summary) -> Callable[[str], float]:
    """Mean over tokens of one of TOKEN_SCALED, by name."""
    return lambda name: scaled_mean(summary.token_scaled, schema.TOKEN_SCALED.index(name), summary.tokens)


def sequence_mean(summary: Summary) -> Callable[[str], float]:
    """Mean over complete sequences of one of SEQUENCE_SCALED, by name."""
    count = summary.count("sequences_complete")
    return lambda name: scaled_mean(summary.sequence_scaled, schema.SEQUENCE_SCALED.index(name), count)
