"""Mismatch against staleness: slopes and parts on null models, against the tokens, and what is missing when."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, merge, summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import Computed, metrics
from tests.oracles.families import batch_of

PARTS = ("lag0", "per_version", "lag0_share", "stale_share")
NAMES = [f"{name}_{part}" for name in ("kl_k3", "outside_2x") for part in PARTS]
VERSION = 100


def mixed(lags: NDArray[np.int64], *, variance: Any, seed: int = 1, length: int = 200) -> Batch:
    """A sequence of Gaussian noise per lag, variance as a function of the lag."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(0, math.sqrt(variance(int(lag))), length) for lag in lags]
    meta = BatchMeta(step=1, train_version=VERSION)
    return batch_of(rows, rng, meta=meta, infer_version=VERSION - lags)


def computed(batch: Batch) -> Computed:
    return metrics(summarise(batch))


def test_noise_that_does_not_grow_with_lag_is_all_there_at_lag_0() -> None:
    lags = np.random.default_rng(0).integers(0, 9, 600)
    found = [computed(mixed(lags, variance=lambda lag: 0.01, seed=seed)).values for seed in range(20)]
    for name, size in (("kl_k3_stale_share", 1.0), ("kl_k3_per_version", 0.005)):
        values = np.array([one[name] for one in found])
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(20) + 1e-3 * size
        assert values.std() < 0.05 * size
        assert values.min() < 0 < values.max()
    assert found[0]["kl_k3_lag0"] == pytest.approx(0.005, rel=0.05)
    assert found[0]["kl_k3_lag0_share"] == 1 - found[0]["kl_k3_stale_share"]


def test_growth_with_lag_is_recovered_whatever_the_buckets() -> None:
    lags = np.concatenate((np.repeat(np.arange(17), 20), np.full(20, 30)))
    slope = 2e-3
    values = computed(mixed(lags, variance=lambda lag: 0.01 + 2 * slope * lag, length=1_000)).values
    # E[k3] of N(0, v) is e^(v/2) - 1, which is not quite linear in the lag.
    expected = np.expm1((0.01 + 2 * slope * lags) / 2)
    exact = np.polyfit(lags, expected, 1)[0]
    assert values["kl_k3_per_version"] == pytest.approx(exact, rel=0.06)
    assert values["kl_k3_lag0"] == pytest.approx(expected[0], rel=0.05)
    assert values["kl_k3_stale_share"] == pytest.approx(1 - expected[0] / expected.mean(), abs=0.02)


def test_a_wide_bucket_stands_at_the_mean_lag_of_its_tokens() -> None:
    rows = [np.full(300, 0.0), np.full(100, 0.5), np.full(300, 0.5)]
    rng = np.random.default_rng(2)
    batch = batch_of(
        rows, rng, meta=BatchMeta(step=1, train_version=VERSION), infer_version=VERSION - np.array([0, 3, 4])
    )
    k3 = math.expm1(0.5) - 0.5
    assert computed(batch).values["kl_k3_per_version"] == pytest.approx(k3 / 3.75, rel=1e-5)


def test_against_the_tokens() -> None:
    lags = np.random.default_rng(3).integers(0, 3, 90)
    batch = mixed(lags, variance=lambda lag: 0.1 + 0.2 * lag, length=37)
    d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N
    lag = np.repeat(lags, 37)
    values = computed(batch).values
    for name, term in (("kl_k3", np.expm1(d) - d), ("outside_2x", (np.abs(d) > math.log(2)) * 1.0)):
        means = [float(term[lag == one].mean()) for one in range(3)]
        weights = np.sqrt(np.bincount(lag))
        assert values[f"{name}_lag0"] == pytest.approx(means[0], rel=1e-9)
        assert values[f"{name}_per_version"] == pytest.approx(np.polyfit(range(3), means, 1, w=weights)[0], rel=1e-9)
        assert values[f"{name}_stale_share"] == pytest.approx(1 - means[0] / term.mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("versions", "reasons"),
    [
        (None, dict.fromkeys(NAMES, "weight versions were not sent")),
        ([200, 300, 400], dict.fromkeys(NAMES, "weight versions were not sent")),
        (
            [100, 100, 100],
            {"kl_k3_per_version": "one bucket of lag", "kl_k3_stale_share": "every token is at lag 0"}
            | {"outside_2x_lag0_share": "every token is at lag 0"},
        ),
        (
            [99, 90, 0],
            {"kl_k3_lag0": "no token is at lag 0", "outside_2x_stale_share": "no token is at lag 0"}
            | {"kl_k3_lag0_share": "no token is at lag 0"},
        ),
        ([97, 96, 96], {"kl_k3_per_version": "one bucket of lag", "kl_k3_lag0": "no token is at lag 0"}),
    ],
    ids=["none", "future", "all at 0", "none at 0", "one bucket"],
)
def test_what_is_missing_says_why(versions: list[int] | None, reasons: dict[str, str]) -> None:
    rng = np.random.default_rng(4)
    meta = BatchMeta(step=1, train_version=None if versions is None else VERSION)
    rows = [rng.normal(0, 0.5, 300) for _ in range(3)]
    columns: dict[str, Any] = {} if versions is None else {"infer_version": np.array(versions)}
    found = computed(batch_of(rows, rng, meta=meta, **columns))
    for name, reason in reasons.items():
        assert reason in found.missing[name], name
    assert set(found.missing) & set(NAMES) >= set(reasons)


def test_few_tokens_at_lag_0_are_no_measure_where_others_lag() -> None:
    rng = np.random.default_rng(5)
    meta = BatchMeta(step=1, train_version=VERSION)
    rows = [rng.normal(0, 0.5, 199), rng.normal(0, 0.5, 900)]
    found = computed(batch_of(rows, rng, meta=meta, infer_version=np.array([100, 98])))
    assert found.missing["kl_k3_lag0"] == "199 tokens at lag 0 among others, needs 200"
    assert "kl_k3_per_version" in found.values
    alone = computed(batch_of(rows[:1], rng, meta=meta, infer_version=np.array([100])))
    assert alone.values["kl_k3_lag0"] == alone.values["kl_k3"]


def test_unknown_and_future_tokens_belong_to_neither_side() -> None:
    rng = np.random.default_rng(6)
    known = mixed(np.array([0, 0, 2, 2]), variance=lambda lag: 0.1)
    wild = [rng.normal(0, 3.0, 400)]
    future = batch_of(
        wild, rng, meta=BatchMeta(step=1, train_version=VERSION, part=1), infer_version=np.array([VERSION + 5])
    )
    unknown = batch_of(wild, rng, meta=BatchMeta(step=1, part=2))
    alone, among = computed(known), metrics(merge(map(summarise, (known, future, unknown))))
    assert {name: among.values[name] for name in NAMES} == {name: alone.values[name] for name in NAMES}


def test_extreme_lags_and_log_ratios_are_survived() -> None:
    rng = np.random.default_rng(7)
    rows = [np.full(300, 0.1), np.full(300, -900.0), np.full(300, 900.0)]
    meta = BatchMeta(step=1, train_version=2 * 10**9)
    batch = batch_of(rows, rng, meta=meta, infer_version=np.array([2 * 10**9, 10**9, 1]))
    found = computed(batch)
    assert found.missing["kl_k3_per_version"] == "exceeds float64"
    assert all(math.isfinite(value) for value in found.values.values())
    assert set(metrics(Summary.empty()).missing) >= set(NAMES)
