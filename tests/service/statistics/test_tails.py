"""Tail indices against ArviZ (an implementation nobody here wrote), Hill against numpy, tail weight on its null."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import merge, summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.tails import ParetoFit, fit_generalised_pareto, pareto_fit

# What arviz-stats 0.8.0 (array_stats._psislw, and _gpdfit) answers for the quantile samples built below.
ARVIZ_FIT = {
    (-0.3, 20): (0.04918679274079496, 0.0008854948699810916),
    (-0.3, 1000): (-0.2889865898871082, 0.0009966715939525687),
    (0, 20): (0.22755764625376948, 0.0009035570538605137),
    (0, 1000): (0.0068909185657796655, 0.0009977028805464568),
    (0.2, 95): (0.24287915112870204, 0.0009802786032803244),
    (0.5, 20): (0.5183798051331637, 0.0009491022040767107),
    (0.5, 1000): (0.5003970209331388, 0.000999080044584022),
    (0.7, 95): (0.6786367017646634, 0.0009963653620469097),
    (1.0, 1000): (0.9936939444070311, 0.0010006760402130066),
    (1.5, 95): (1.3760743937027635, 0.0010228710379734302),
    (3.0, 20): (1.9705654788520777, 0.001256072034346858),
    (3.0, 1000): (2.9493886187468674, 0.0010250830854472014),
}
ARVIZ_KHAT = {
    ("t2", 500, 0.0001): 0.4415315114056372,
    ("t2", 500, 0.05): 0.5439923253724198,
    ("t2", 500, 0.3): 1.0336455075347395,
    ("t2", 500, 1.0): 2.2698282997594337,
    ("t2", 5000, 0.0001): 0.480668000948851,
    ("t2", 5000, 0.05): 0.6976142464405547,
    ("t2", 5000, 0.3): 1.662122024443918,
    ("t2", 5000, 1.0): 4.148747404824761,
    ("t2", 50000, 0.0001): 0.49436228055343,
    ("t2", 50000, 0.05): 0.9052810688626559,
    ("t2", 50000, 0.3): 2.60091118661915,
    ("t2", 50000, 1.0): 6.458714162853256,
    ("logistic", 500, 0.0001): 0.051714766056820835,
    ("logistic", 500, 0.05): 0.0943030949657515,
    ("logistic", 500, 0.3): 0.3070583483880672,
    ("logistic", 500, 1.0): 0.9067139314792726,
    ("logistic", 5000, 0.0001): 0.01948741339985065,
    ("logistic", 5000, 0.3): 0.3030523560119228,
    ("logistic", 50000, 0.05): 0.05531924900522441,
    ("logistic", 50000, 1.0): 0.9891587012789965,
}

Float64Array = NDArray[np.float64]


def ranks(n: int) -> Float64Array:
    return (np.arange(1, n + 1) - 0.5) / n


def sample(name: str, n: int, scale: float) -> Float64Array:
    p = ranks(n)
    return scale * ((2 * p - 1) / np.sqrt(2 * p * (1 - p)) if name == "t2" else np.log(p / (1 - p)))


def batch_of_log_ratios(d: Float64Array) -> Batch:
    """One side is 0 and the other carries d, so that float32 rounds it to 6e-8 relative and no further."""
    base = np.where(d > 0, -d, 0).astype(np.float32)
    train = np.where(d > 0, 0, d).astype(np.float32)
    return Batch.from_arrays(BatchMeta(step=1), infer_logprobs=base, train_logprobs=train)


@pytest.mark.parametrize(("k", "n"), ARVIZ_FIT)
def test_fit_equals_arviz(k: float, n: int) -> None:
    log_survival = np.log1p(-ranks(n))
    x = 1e-3 * (-log_survival if k == 0 else np.expm1(-k * log_survival) / k)
    assert fit_generalised_pareto(x) == pytest.approx(ARVIZ_FIT[k, n], rel=1e-9)


@pytest.mark.parametrize(("name", "n", "scale"), ARVIZ_KHAT)
def test_khat_from_the_grid_is_near_arviz_on_the_raw_weights(name: str, n: int, scale: float) -> None:
    values = metrics(summarise(batch_of_log_ratios(sample(name, n, scale)))).values
    expected = ARVIZ_KHAT[name, n, scale]
    assert values["tail_khat_upper"] == pytest.approx(expected, abs=0.012, rel=0.01)
    assert values["tail_khat_lower"] == pytest.approx(expected, abs=0.012, rel=0.01)


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0, 1.5])
def test_khat_recovers_the_index_of_pareto_weights(k: float) -> None:
    w = stats.genpareto.ppf(ranks(200_000), k) + 1
    fit = pareto_fit(summarise(batch_of_log_ratios(np.log(w))), side="upper")
    assert isinstance(fit, ParetoFit)
    assert fit.shape == pytest.approx(k, abs=0.03)
    assert fit.exceedances == math.ceil(3 * math.sqrt(200_000))
    assert fit.share == fit.exceedances / 200_000
    threshold = float(np.sort(w)[-fit.exceedances - 1])
    assert fit.log_threshold == pytest.approx(math.log(threshold), rel=4e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("n", [100, 1_000, 70_000])
def test_hill_against_numpy(scale: float, n: int) -> None:
    rng = np.random.default_rng(n)
    d = np.sort(scale * rng.standard_t(3, n).astype(np.float32).astype(np.float64))
    batch = batch_of_log_ratios(d)
    exact = np.sort(batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N)
    m = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    values = metrics(summarise(batch)).values
    upper, lower = exact[-m:].mean() - exact[-m - 1], exact[m] - exact[:m].mean()
    # Both the mean and the threshold are read from cells: half a cell of the threshold is the error.
    assert values["tail_hill_upper"] == pytest.approx(upper, abs=0.004 * abs(exact[-m - 1]) + 0.004 * upper)
    assert values["tail_hill_lower"] == pytest.approx(lower, abs=0.004 * abs(exact[m]) + 0.004 * lower)


def test_tail_metrics_are_missing_with_a_reason() -> None:
    def missing(d: Float64Array) -> str:
        computed = metrics(summarise(batch_of_log_ratios(d)))
        for side in ("upper", "lower"):
            assert computed.missing[f"tail_khat_{side}"] == computed.missing[f"tail_hill_{side}"]
        return computed.missing["tail_khat_upper"]

    rng = np.random.default_rng(0)
    assert missing(rng.normal(0, 1, 99)) == "99 tokens, needs 100"
    assert missing(np.where(np.arange(400) % 30 == 0, rng.normal(0, 1, 400), 0)) == (
        "the threshold is at 0: too few tokens differ"
    )
    assert missing(np.tile([-2.0, -1.0, 1.0, 2.0], 100)) == "1 distinct exceedances, needs 10"
    assert "tail_khat_upper" in metrics(summarise(batch_of_log_ratios(rng.normal(0, 1, 100)))).values


def test_exceedances_in_the_cell_of_the_threshold_are_not_invented() -> None:
    # 20 exceedances of 100: exactly the 9 largest are distinct; the other 11 share the threshold's cell.
    d = np.concatenate((np.full(91, 0.5), 2.0 ** np.arange(9)))
    assert metrics(summarise(batch_of_log_ratios(d))).values["tail_khat_upper"] > 1
    # 9 exceedances in 9 cells above it and none inside.
    few = np.concatenate((np.linspace(-1, -0.5, 36), np.full(36, 0.5), 2.0 ** np.arange(9), np.zeros(19)))
    assert len(few) == 100
    assert "tail_khat_upper" in metrics(summarise(batch_of_log_ratios(few))).values


def test_a_window_of_equal_tokens_costs_no_memory() -> None:
    summary = summarise(batch_of_log_ratios(np.concatenate((np.full(99_988, 0.5), 1.5 ** np.arange(1, 13)))))
    for _ in range(12):
        summary = merge([summary, summary])
    assert summary.tokens == 409_600_000  # nearly all in the threshold's cell
    tracemalloc.start()
    fit = pareto_fit(summary, side="upper")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(fit, ParetoFit)
    assert fit.exceedances == math.ceil(3 * math.sqrt(summary.tokens))
    assert peak < 500_000_000


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("shift", [0.0, 0.5, -8.0])
def test_tail_weight_is_one_for_gaussian_noise_of_any_size_and_offset(scale: float, shift: float) -> None:
    d = scale * (np.random.default_rng(4).normal(0, 1, 200_000) + shift)
    infer = np.full(len(d), -50 * scale, np.float32)
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=(infer + d).astype(np.float32))
    assert metrics(summarise(batch)).values["tail_weight"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.0, 20.0])
def test_tail_weight_needs_a_spread_the_grid_resolves(offset: float) -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(0, 0.01, 100_000)
    computed = metrics(summarise(batch_of_log_ratios(-offset - 0.06 * (offset == 0) + noise)))
    if offset == 0:
        assert computed.values["tail_weight"] == pytest.approx(1, abs=0.02)
    else:
        assert "tail_weight" in computed.missing


def test_tail_weight_grows_with_the_tails() -> None:
    rng = np.random.default_rng(4)
    weights = []
    for nu in (3, 5, 30):
        d = 0.01 * np.clip(rng.standard_t(nu, 200_000), -200, 200)
        infer = np.full(len(d), -2.5, np.float32)
        train = (infer + d).astype(np.float32)
        exact = train.astype(np.float64) - infer
        batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train)
        value = metrics(summarise(batch)).values["tail_weight"]
        expected = 2 / math.pi * exact.var() / np.abs(exact - np.median(exact)).mean() ** 2
        assert value == pytest.approx(expected, rel=0.01)
        weights.append(value)
    assert weights[0] > weights[1] > weights[2] > 1.01
