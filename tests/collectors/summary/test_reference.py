"""The reference itself: numbers worked out by hand; and every backend against it on every family of data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, schema, summarise
from tailwatch_collectors.summary.reference import js, k3
from tailwatch_collectors.types import BatchMeta
from tests.oracles.backends import assert_agree
from tests.oracles.families import FAMILIES, batch_of


def scaled(summary: Summary, name: str) -> float:
    return summary.token_scaled.value(schema.TOKEN_SCALED.index(name))


def test_two_tokens_by_hand() -> None:
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0, -2.0]], train_logprobs=[[-2.0, -1.5]])
    summary = summarise(batch, backend="reference")
    assert summary.count("tokens") == 2
    assert summary.token_sum("log_ratio_positive") == 0.5
    assert summary.token_sum("log_ratio_negative") == 1.0
    assert scaled(summary, "ratio") == pytest.approx(math.exp(-1) + math.exp(0.5), rel=1e-15)
    assert scaled(summary, "k3") == pytest.approx(math.exp(-1) + math.exp(0.5) - 1.5, rel=1e-15)
    assert float(summary.log_ratio.mean) == -0.25
    assert float(summary.log_ratio.m2) == 2 * 0.75**2
    assert summary.cluster_sums[schema.CLUSTER_TERMS.index("log_ratio")].tolist() == [0.25, -1.0]
    assert summary.slices["position"].labels == ("0-1",)
    assert summary.above.tolist() == [1] * 5 + [0] * 6  # e^0.5 = 1.65
    assert summary.below.tolist() == [1] * 6 + [0] * 5  # e = 2.72
    assert summary.align[2].tolist() == [2.0, -3.0, -3.5, 5.0, 6.25, 5.0]


@pytest.mark.parametrize("d", [1e-12, 1e-6, 0.1, 0.49, 0.51, 3.0, -1e-12, -1e-6, -0.3, -2.0])
def test_terms_that_cancel_keep_their_digits(d: float) -> None:
    import mpmath  # type: ignore[import-untyped]

    with mpmath.workdps(60):
        x = mpmath.mpf(d)
        assert k3(d) == pytest.approx(float(mpmath.expm1(x) - x), rel=1e-14)
        half = x / 2
        inner = half * mpmath.tanh(half) - mpmath.log(mpmath.cosh(half))
        assert js(d) == pytest.approx(float(mpmath.exp(half) * mpmath.cosh(half) * inner), rel=1e-14)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_all_backends_on_every_family(family: str) -> None:
    rng = np.random.default_rng(1)
    lengths = [1, 300, 2, 70]
    batch = batch_of(
        FAMILIES[family](rng, lengths),
        rng,
        meta=BatchMeta(step=1, train_version=5),
        infer_version=[5, 4, 1, 9],
        advantage=rng.normal(size=4),
        turn=np.sort(rng.integers(0, 9, sum(lengths))),
    )
    truth = summarise(batch, backend="reference", sample=True)
    assert_agree(summarise(batch, backend="numpy", sample=True), truth)
    assert_agree(summarise(batch, backend="numba", sample=True), truth)
