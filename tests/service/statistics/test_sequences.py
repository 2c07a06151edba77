"""Length scaling on its null models, and what leaves the sequence statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tests.oracles.families import batch_of, bias_over_length, normal

LENGTHS = [8] * 300 + [50] * 300 + [400] * 300 + [3_000] * 100


@pytest.mark.parametrize("bias", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0])
def test_independent_noise_scales_as_length(scale: float, bias: float) -> None:
    rng = np.random.default_rng(1)
    rows = [row + bias * scale for row in normal(scale)(rng, LENGTHS)]
    values = metrics(summarise(batch_of(rows, rng, spacing=2 * scale))).values
    assert values["length_scaling"] == pytest.approx(1, abs=4 * values["length_scaling_se"])
    assert values["length_scaling_se"] < 0.03


def test_an_offset_per_sequence_scales_as_length_squared() -> None:
    rng = np.random.default_rng(2)
    rows = [np.full(n, rng.normal(0, 0.05)) + rng.normal(0, 1e-3, n) for n in LENGTHS]
    values = metrics(summarise(batch_of(rows, rng))).values
    assert values["length_scaling"] == pytest.approx(2, abs=4 * values["length_scaling_se"])


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(3)
    found = [metrics(summarise(batch_of(normal(0.01)(rng, [4, 16, 64] * 40), rng))).values for _ in range(200)]
    slopes = np.array([values["length_scaling"] for values in found])
    assert slopes.std() == pytest.approx(found[0]["length_scaling_se"], rel=0.2)


def test_a_bias_that_hides_the_noise_is_said() -> None:
    rng = np.random.default_rng(3)
    rows = [np.full(n, 0.25) for n in [8] * 20 + [64] * 20 + [512] * 20]
    computed = metrics(summarise(batch_of(rows, rng)))
    assert computed.missing["length_scaling"].startswith("0 length buckets")
    assert metrics(summarise(batch_of(bias_over_length(rng, [9] * 20), rng))).missing["length_scaling"].startswith("1 ")


def test_an_incomplete_sequence_leaves_the_sequence_statistics_only() -> None:
    infer = [[-1.0, -1.0], [-2.0, -2.0, math.nan], [-3.0]]
    train = [[-1.5, -1.0], [-2.0, -9.0, -2.0], [-2.0]]
    mask = [[True, True], [True, True, True], [True]]
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train, mask=mask)
    values = metrics(summarise(batch)).values
    assert values["tokens"] == 5
    assert values["sequences"] == 3
    assert values["sequences_incomplete"] == 1
    assert values["log_ratio_min"] == -7
    assert values["log_ppl_gap_min"] == -1
    assert values["log_ppl_gap_max"] == 0.25
    assert values["geometric_ratio_mean"] == pytest.approx((math.exp(-0.25) + math.e) / 2)
    # Masked out, the same token harms nothing.
    mask[1][2] = False
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train, mask=mask)
    values = metrics(summarise(batch)).values
    assert values["sequences_incomplete"] == 0
    assert values["log_ppl_gap_max"] == 3.5


def test_bands_are_counted_beyond_their_edge() -> None:
    rows = [np.full(1, s) for s in (0.5, 0.75, -0.75, 1.75, -1.75, 5e-4, 2e-3)]
    values = metrics(summarise(batch_of(rows, np.random.default_rng(0)))).values
    assert values["sequences_outside_2x_share"] == 4 / 7
    assert values["sequences_outside_5x_share"] == 2 / 7
    assert values["sequences_geometric_outside_share"] == 6 / 7
