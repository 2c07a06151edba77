"""Where chance leaves ess_length_residual: calibrated on draws of the null model, at equal and at mixed lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailwatch_collectors.summary import Summary, summarise
from tailwatch_service.statistics import ess_null
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.ess_chance import chance_point, ess_chance
from tailwatch_service.statistics.normal import normal_quantile
from tests.oracles.families import batch_of, bias_over_length, normal

MIXES = {
    "equal": {25: 60},
    "mixed": {10: 20, 20: 20, 40: 20},
    "sixteenfold": {4: 30, 64: 30},
    "a few long": {100: 480, 1_000: 20},
    "many": {10: 700, 20: 700, 40: 600},
}


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("mix", MIXES)
def test_about_one_batch_in_a_hundred_falls_below(mix: str, scale: float) -> None:
    rng = np.random.default_rng(7)
    T = np.repeat(list(MIXES[mix]), list(MIXES[mix].values())).astype(np.float64)
    centre, spread = -T * scale**2 / 2, np.sqrt(T) * scale
    z = np.concatenate([normal_quantile((np.arange(n) + 0.5) / n) for n in MIXES[mix].values()])

    def effective(
        log_weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        w = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
        share: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = w.sum(axis=-1) ** 2 / (w * w).sum(axis=-1) / len(T)
        return share

    draws = 4_000 if len(T) < 1_000 else 1_500
    residual = effective(centre + spread * rng.standard_normal((draws, len(T)))) / effective(centre + spread * z)
    point = chance_point(list(MIXES[mix].values()), [length * scale**2 for length in MIXES[mix]])
    assert 0.002 <= float((residual < point).mean()) <= 0.03


def test_batches_of_independent_tokens_seldom_fall_below() -> None:
    rng = np.random.default_rng(4)
    found = [
        metrics(summarise(batch_of(normal(0.2)(rng, [8, 20, 40] * 20), rng, spacing=5))).values for _ in range(150)
    ]
    below = [one["ess_length_residual"] < one["ess_length_residual_p01"] for one in found]
    assert sum(below) <= 5
    assert all(one["ess_length_residual_p001"] < one["ess_length_residual_p01"] for one in found)


def test_an_offset_per_sequence_falls_below() -> None:
    rng = np.random.default_rng(9)
    values = metrics(summarise(batch_of(bias_over_length(rng, [40] * 300), rng))).values
    assert values["ess_length_residual"] < values["ess_length_residual_p001"] < values["ess_length_residual_p01"]


@pytest.mark.parametrize(("sequences", "variance"), [(64, 0.1), (256, 1.0), (32, 8.0), (2_048, 0.3), (8_192, 4.0)])
def test_equal_lengths_agree_with_the_table(sequences: int, variance: float) -> None:
    row, column = ess_null.SEQUENCES.index(sequences), ess_null.VARIANCES.index(variance)
    found = chance_point([sequences], [variance])
    assert math.log(found) == pytest.approx(math.log(ess_null.P01[row][column]), rel=0.25)


def test_no_spread_leaves_it_at_1_and_any_spread_is_survived() -> None:
    assert chance_point([20], [0.0]) == 1.0
    for variance in (1e-12, 1e9, 1e300):
        assert 0 < chance_point([20, 5], [variance, 2 * variance]) <= 1.0


def test_few_sequences_have_no_point() -> None:
    rng = np.random.default_rng(3)
    found = ess_chance(summarise(batch_of(normal(0.1)(rng, [5] * 7), rng)))
    assert found["ess_length_residual_p01"] == "7 complete sequences, needs 8"
    assert set(ess_chance(Summary.empty()).values()) == {"no complete sequences"}
