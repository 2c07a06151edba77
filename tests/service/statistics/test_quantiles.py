"""Order statistic number ceil(qN) from the grid: within half a cell, whatever the draw."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.quantiles import QUANTILES, grid_quantile
from tests.oracles.families import FAMILIES, batch_of

RELATIVE = 2.0**-8
"""Half a cell at seven mantissa bits: 0.39 %."""


def check(batch: Batch) -> None:
    d = np.sort(batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N.astype(np.float64))
    values = metrics(summarise(batch)).values
    for suffix, q in QUANTILES.items():
        exact = float(d[max(1, math.ceil(q * len(d))) - 1])
        # float32(d) chooses the cell; below 2^-30 the cell reads 0.
        allowed = (RELATIVE + 2.0**-23) * abs(exact) if abs(exact) >= 2**-30 * (1 - 1e-7) else abs(exact)
        assert abs(values[f"log_ratio_q{suffix}"] - exact) <= allowed, (suffix, exact)
        assert d[0] <= values[f"log_ratio_q{suffix}"] <= d[-1]


log_probs = (
    st.floats(-1e6, 0, width=32)
    | st.floats(-1, 0, width=32)
    | st.floats(-(2.0**-20), 0, width=32)
    | st.sampled_from([0.0, -1.0, -2.0, -0.5, -(2.0**-30), -(2.0**-31), -(2.0**20), -1.0078125, -1.0039062])
)


@given(st.lists(st.tuples(log_probs, log_probs), min_size=1, max_size=60))
@example([(-(2.0**-30), 0.0)])
@example([(0.0, -(2.0**20))])
@settings(max_examples=400)
def test_every_quantile_of_every_draw(pairs: list[tuple[float, float]]) -> None:
    infer, train = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    check(Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train))


@pytest.mark.parametrize("family", FAMILIES)
def test_quantiles_of_the_families(family: str) -> None:
    rng = np.random.default_rng(2)
    check(batch_of(FAMILIES[family](rng, [3_000, 2_001]), rng))


def test_the_rank_is_exact_where_floats_are_not() -> None:
    # 0.07 * 100 is 7.000000000000001 in float64: its ceiling would be the 8th.
    grid = Grid(np.arange(6_402, 6_502), np.ones((100, 1), np.int64))
    seventh = grid_quantile(grid, Fraction(7, 100), bits=7)
    assert seventh == grid_quantile(Grid(grid.keys[6:7], grid.counts[6:7]), Fraction(1, 2), bits=7)
    assert math.isnan(grid_quantile(Grid.empty(), Fraction(1, 2), bits=7))
