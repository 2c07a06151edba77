"""exact_quantiles: order statistics, against a sort."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from tailwatch_collectors.summary import exact_quantiles, schema
from tests.oracles.families import FAMILIES, batch_of

QS = (0, 0.001, 0.02, 0.07, Fraction(1, 3), 0.5, 0.98, 0.999, 1)


def order_statistics(d: np.ndarray) -> list[float]:
    shares = [Fraction(str(q)) if isinstance(q, float) else Fraction(q) for q in QS]
    return [float(np.sort(d)[max(1, math.ceil(share * len(d))) - 1]) for share in shares]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_order_statistics_against_a_sort(family: str) -> None:
    rng = np.random.default_rng(1)
    batch = batch_of(FAMILIES[family](rng, [1, 700, 90_000, 3]), rng)
    d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N
    assert exact_quantiles(batch, QS).tolist() == order_statistics(d)


def test_by_probability_bin_and_only_what_counts() -> None:
    rng = np.random.default_rng(2)
    batch = batch_of(FAMILIES["student-t 2"](rng, [5_000] * 4), rng)
    infer = batch.infer_logprobs_N.copy()
    infer[::97], infer[1::97], infer[2::97] = np.nan, 0.5, -np.inf
    mask = rng.random(batch.tokens) < 0.8
    batch = replace(batch, infer_logprobs_N=infer, mask_N=mask)
    counts = mask & np.isfinite(infer) & (infer <= 0)
    d = (batch.train_logprobs_N.astype(np.float64) - infer)[counts]
    bins = np.searchsorted(schema.PROBABILITY_LOG_EDGES, infer[counts], side="right")
    found = exact_quantiles(batch, QS, by_bin=True)
    assert found.shape == (schema.PROBABILITY_BINS, len(QS))
    for index, row in enumerate(found):
        inside = d[bins == index]
        if len(inside):
            assert row.tolist() == order_statistics(inside)
        else:
            assert np.isnan(row).all()
    assert exact_quantiles(batch, QS).tolist() == order_statistics(d)


def test_where_nothing_counts_there_is_no_quantile() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of([rng.normal(0, 1, 5)], rng)
    nothing = replace(batch, mask_N=np.zeros(5, np.bool_))
    assert np.isnan(exact_quantiles(nothing, [0.5])).all()
    assert exact_quantiles(batch, []).shape == (0,)
    with pytest.raises(ValueError, match=r"1\.5 is not a share"):
        exact_quantiles(batch, [1.5])
