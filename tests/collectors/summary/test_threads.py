"""The same bits on any number of threads, at any time, in any order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tailwatch_collectors.summary import merge, summarise
from tailwatch_collectors.types import BatchMeta
from tests.oracles.compare import assert_identical
from tests.oracles.families import FAMILIES, batch_of


@pytest.mark.parametrize("family", ["student-t 2", "+-1e6", "all zero", "normal 0.01"])
@pytest.mark.parametrize("lengths", [[1_000] * 120, [90_000, 1, 40_000, 7], [5] * 20_000, [10]])
def test_threads_do_not_show(family: str, lengths: list[int]) -> None:
    rng = np.random.default_rng(1)
    n = sum(lengths)
    batch = batch_of(
        FAMILIES[family](rng, lengths),
        rng,
        meta=BatchMeta(step=1, train_version=30),
        infer_version=np.sort(rng.integers(0, 40, n)).astype(np.int32),
        source=[f"s{row % 40}" for row in range(len(lengths))],
        advantage=rng.normal(size=len(lengths)),
        sum_p2_other=rng.random(n) * 0.1,
        entropy=rng.random(n),
    )
    alone = summarise(batch, backend="numba")
    for threads in (2, 3, 8):
        assert_identical(summarise(batch, backend="numba", threads=threads), alone)


def test_many_batches_at_once() -> None:
    batches = []
    for part in range(24):
        rng = np.random.default_rng(part)
        rows = FAMILIES["student-t 2"](rng, [300] * 20)
        batches.append(batch_of(rows, rng, meta=BatchMeta(step=1, part=part)))
    alone = merge([summarise(batch, backend="numba") for batch in batches])
    with ThreadPoolExecutor(6) as pool:
        together = merge(list(pool.map(lambda batch: summarise(batch, backend="numba", threads=2), batches)))
    assert_identical(together, alone)
