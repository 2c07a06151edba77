"""Every metric of the registry against its definition: mpmath on small data, long doubles on large."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import Computed, headline, metrics
from tailwatch_service.statistics.registry import HEADLINE, METRICS
from tests.oracles.definitions import LONG, MPMATH, exact_metrics
from tests.oracles.families import FAMILIES, SPREADS, all_equal, batch_of, normal

SMALL = [1, 2, 7, 31, 90, 1, 5, 64]
TINY = [1]
ONE_SEQUENCE = [150]
SCALING = [*([2] * 9), *([5] * 9), *([11] * 9), *([3] * 2)]
SHAPES = {"mixed": SMALL, "one token": TINY, "one sequence": ONE_SEQUENCE, "three length buckets": SCALING}

SIGNED = {
    # Sums that may cancel: right to 1e-12 of their terms' size, given by another metric.
    "kl_k1": "log_ratio_abs_mean",
    "log_ratio_mean": "log_ratio_abs_mean",
    "log_ppl_gap": "log_ppl_gap_abs",
    "log_ppl_gap_min": "log_ppl_gap_abs",
    "log_ppl_gap_max": "log_ppl_gap_abs",
    "log_ppl_gap_abs": "log_ratio_abs_mean",
    "kl_reverse_k1": "mult_prob_error",
    "chi2_token_uncentred": "tv",
    "log_ratio_std": "log_ratio_abs_mean",
}
LOOSE = {
    # Conditioned worse than their definition's size says: relative tolerances.
    "prob_pearson": 1e-9,
    "prob_diff_abs_std": 1e-8,
    "length_scaling": 1e-6,
    "length_scaling_se": 1e-9,
    "ess_sequence_expected": 1e-9,
    "ess_length_residual": 1e-9,
    "chi2_sequence_log10p1": 1e-9,
}


def check(computed: Computed, exact: dict[str, Any]) -> None:
    for name, expected in exact.items():
        if expected is None:
            assert name in computed.missing, f"{name} = {computed.values[name]} should be missing"
        elif abs(expected) > sys.float_info.max:
            assert computed.missing[name] == "exceeds float64", name
        else:
            assert name in computed.values, f"{name} is missing: {computed.missing[name]}, expected {expected}"
            size = abs(exact[SIGNED[name]]) if name in SIGNED else 0
            scale = max(abs(expected), size)
            # Below the smallest normal float64, 0 is the answer; a logarithm of 1 is 0 to rounding.
            allowed = LOOSE.get(name, 1e-11) * scale + (1e-15 if "log10" in name else sys.float_info.min)
            error = abs(computed.values[name] - expected)
            assert error <= allowed, f"{name}: {computed.values[name]!r}, expected {float(expected)!r}"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_small_data_against_fifty_digits(family: str, shape: str) -> None:
    rng = np.random.default_rng(7)
    batch = batch_of(FAMILIES[family](rng, SHAPES[shape]), rng)
    check(metrics(summarise(batch)), exact_metrics(batch, MPMATH))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "+-1e6"])
def test_large_data_against_long_doubles(family: str) -> None:
    rng = np.random.default_rng(11)
    lengths = [1] * 40 + [32] * 40 + [700] * 40 + [5_000] * 9 + [32_768, 20_000]
    batch = batch_of(FAMILIES[family](rng, lengths), rng)
    check(metrics(summarise(batch)), exact_metrics(batch, LONG))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("distance", [1e-4, 1.0, 30.0])
def test_k3_is_right_to_nine_digits_at_any_spread(spread: float, distance: float) -> None:
    rng = np.random.default_rng(13)
    batch = batch_of(normal(spread)(rng, [40] * 7), rng, spacing=distance)
    value = metrics(summarise(batch)).values["kl_k3"]
    expected = exact_metrics(batch, MPMATH)["kl_k3"]
    assert expected > 0
    assert abs(value - expected) <= 1e-12 * expected


GRID = {
    *(name for name in METRICS if name.startswith("log_ratio_q")),
    "tail_khat_upper", "tail_khat_lower", "tail_hill_upper", "tail_hill_lower", "tail_weight",
    "envelope_width_low", "envelope_width_high",
}  # fmt: skip
COUNTED = {name for name, metric in METRICS.items() if metric.family == "validity"}
SENT = {"entropy_train", "entropy_infer", "entropy_gap", "reward_mean"}
ELSEWHERE = {name for name, metric in METRICS.items() if metric.family in {"sharpness", "staleness"}} | {
    "ess_length_residual_p01", "ess_length_residual_p001",
}  # fmt: skip
"""Whose oracles stand beside their null models."""


def test_every_metric_has_an_oracle() -> None:
    rng = np.random.default_rng(1)
    exact = exact_metrics(batch_of(normal(0.1)(rng, TINY), rng), MPMATH)
    assert set(exact) | GRID | COUNTED | SENT | ELSEWHERE == set(METRICS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_is_a_finite_value_or_a_reason(family: str) -> None:
    rng = np.random.default_rng(5)
    for lengths in SHAPES.values():
        computed = metrics(summarise(batch_of(FAMILIES[family](rng, lengths), rng)))
        assert set(computed.values) | set(computed.missing) == set(METRICS)
        assert not set(computed.values) & set(computed.missing)
        assert all(math.isfinite(value) for value in computed.values.values())
        assert all(computed.missing.values())


NEVER_MISSING = {name for name, metric in METRICS.items() if metric.missing_when == "never"}


def test_nothing_is_not_zero() -> None:
    computed = metrics(Summary.empty())
    assert set(computed.values) == NEVER_MISSING
    assert all(value == 0 for value in computed.values.values())
    assert headline(Summary.empty()) == {}


def test_headline_is_what_the_metrics_say() -> None:
    rng = np.random.default_rng(3)
    summary = summarise(batch_of(normal(0.1)(rng, [300]), rng, spacing=3))
    values = metrics(summary).values
    assert headline(summary) == {name: values[name] for name in HEADLINE}


def test_entropies_and_rewards_are_averaged_where_they_are_finite() -> None:
    rng = np.random.default_rng(3)
    entropy = np.array([0.5, np.nan, 1.5, 2.5], np.float32)
    infer_entropy = np.array([0.25, 1.0, np.inf, 2.0], np.float32)
    batch = batch_of(
        normal(0.1)(rng, [3, 1]),
        rng,
        entropy=entropy,
        infer_entropy=infer_entropy,
        reward=np.array([1.0, np.nan], np.float32),
    )
    values = metrics(summarise(batch)).values
    assert values["entropy_train"] == 1.5
    assert values["entropy_infer"] == pytest.approx(3.25 / 3)
    assert values["entropy_gap"] == 0.375
    assert values["reward_mean"] == 1.0


def test_equal_log_ratios_have_no_spread() -> None:
    rng = np.random.default_rng(3)
    computed = metrics(summarise(batch_of(all_equal(rng, [64] * 40), rng, spacing=1e-9)))
    assert computed.values["log_ratio_std"] < 1e-9
    for name in ("tail_khat_upper", "tail_khat_lower", "tail_weight"):
        assert name in computed.missing


def test_probabilities_that_do_not_vary_have_no_correlation() -> None:
    # 0.1 has no exact mean in binary: the leftovers of rounding are not a spread.
    same = np.full(1_001, -0.1, np.float32)
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=same, train_logprobs=same - np.float32(0.3))
    assert metrics(summarise(batch)).missing["prob_pearson"] == "the probabilities do not vary"
