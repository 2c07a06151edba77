"""Estimators of divergences between the inference and the training policy, from samples of the inference policy.

w = e^d = train / infer; every expectation is a mean over tokens. Directions are in the registry.
"""

from __future__ import annotations

from tailwatch_collectors.summary import Summary
from tailwatch_service.statistics.values import NO_TOKENS, Value, finite, ratio, token_mean


def kl(summary: Summary) -> dict[str, Value]:
    """k1, k2, k3 of both directions, Jensen-Shannon, chi-squared, second moment."""
    tokens = summary.tokens
    mean = token_mean(summary)
    positive, negative = summary.token_sum("log_ratio_positive"), summary.token_sum("log_ratio_negative")
    second_moment = ratio(summary.token_sum("log_ratio_sq"), tokens, NO_TOKENS)
    values: dict[str, float] = {
        "kl_k3": mean("k3"),
        "kl_reverse_k1": mean("reverse_k1_positive") - mean("reverse_k1_negative"),
        "kl_reverse_k3": mean("reverse_k3"),
        "kl_unweighted_reverse_k3": mean("k3_inverse"),
        "js": mean("js"),
        "chi2_token": mean("excess_sq"),
        # E[w^2] - 1 as E[(w-1)^2] + 2 E[w-1]: no digits are lost when w is close to 1.
        "chi2_token_uncentred": mean("excess_sq") + 2 * (mean("excess_positive") - mean("excess_negative")),
    }
    found: dict[str, Value] = {name: finite(value) if tokens else NO_TOKENS for name, value in values.items()}
    found["kl_k1"] = ratio(negative - positive, tokens, NO_TOKENS)
    found["kl_k2"] = second_moment / 2 if isinstance(second_moment, float) else second_moment
    found["second_moment"] = second_moment
    return found
