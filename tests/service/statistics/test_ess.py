"""Effective sample sizes: bounds, and the expected one on its null."""

from __future__ import annotations

import numpy as np
import pytest

from tailwatch_collectors.summary import summarise
from tailwatch_service.statistics.compute import metrics
from tests.oracles.families import batch_of, bias_over_length, normal


@pytest.mark.parametrize("length", [16, 128, 1_000])
def test_independent_noise_has_the_expected_sequence_ess(length: int) -> None:
    # s sqrt(T) = 0.5: far from the regime in which one sequence decides.
    rng = np.random.default_rng(length)
    values = metrics(summarise(batch_of(normal(0.5 / length**0.5)(rng, [length] * 2_000), rng, spacing=5))).values
    assert values["ess_sequence"] == pytest.approx(np.exp(-0.25), rel=0.05)
    assert values["ess_length_residual"] == pytest.approx(1, abs=0.05)


def test_mixed_lengths_are_expected_bucket_by_bucket() -> None:
    rng = np.random.default_rng(9)
    lengths = [int(t) for t in 2 ** rng.uniform(3, 11, 3_000)]
    values = metrics(summarise(batch_of(normal(0.01)(rng, lengths), rng, spacing=5))).values
    assert values["ess_length_residual"] == pytest.approx(1, abs=0.03)


def test_an_offset_per_sequence_is_worse_than_length_explains() -> None:
    rng = np.random.default_rng(9)
    values = metrics(summarise(batch_of(bias_over_length(rng, [400] * 500), rng))).values
    assert values["ess_length_residual"] < 0.2


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_ess_stays_between_one_token_and_all(size: float, n: int) -> None:
    rng = np.random.default_rng(n)
    values = metrics(summarise(batch_of([size * rng.normal(0, 1, 1) for _ in range(n)], rng))).values
    for name in ("ess_token", "ess_sequence", "ess_sequence_expected"):
        assert 1 / n <= values[name] <= 1 + 1e-15
    if size == 1e6:
        assert values["ess_token"] == pytest.approx(1 / n)
    if size == 0:
        assert values["ess_token"] == values["ess_sequence"] == 1
