"""The shortcuts of `summarise` give what the long way gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tailwatch_collectors.summary import schema, summarise
from tailwatch_collectors.summary.picks import highest
from tailwatch_collectors.types import BatchMeta
from tests.oracles.compare import assert_close, assert_identical
from tests.oracles.families import FAMILIES, batch_of, student_t2

LENGTHS = [1, 0, 700, 3, 70_000, 0]


def test_an_all_true_mask_is_no_mask() -> None:
    rng = np.random.default_rng(1)
    batch = batch_of(student_t2(rng, LENGTHS), rng)
    assert_identical(summarise(replace(batch, mask_N=np.ones(batch.tokens, np.bool_))), summarise(batch))


@pytest.mark.parametrize("family", ["student-t 2", "+-1e6", "all zero"])
def test_one_lag_for_all_is_what_many_lags_add_up_to(family: str) -> None:
    rng = np.random.default_rng(2)
    lengths = [500] * 8
    meta = BatchMeta(step=1, train_version=9)
    batch = batch_of(FAMILIES[family](rng, lengths), rng, meta=meta, infer_version=np.full(8, 6))
    alone = summarise(batch)
    assert (alone.slices["lag"].labels, alone.slices["lag"].stats.counts_RC[:, 0].tolist()) == (("3-4",), [4_000])
    by_token = replace(batch, infer_version_B=None, infer_version_N=np.full(batch.tokens, 6, np.int32))
    assert_close(summarise(by_token), alone)
    # A ninth sequence of another lag sends every token the long way; the bucket of the eight must be the same.
    ninth = replace(
        batch,
        offsets_B1=np.append(batch.offsets_B1, batch.tokens + 1),
        infer_logprobs_N=np.append(batch.infer_logprobs_N, np.float32(-1)),
        train_logprobs_N=np.append(batch.train_logprobs_N, np.float32(-2)),
        infer_version_B=np.array([6] * 8 + [9], np.int64),
    )
    mixed = summarise(ninth)
    assert mixed.slices["lag"].labels == ("0", "3-4")
    assert mixed.slices["lag"].stats.counts_RC[:, 0].tolist() == [1, 4_000]
    both = mixed.bucket("lag", "3-4")
    one = alone.bucket("lag", "3-4")
    assert (both.min_R, both.max_R) == (one.min_R, one.max_R)
    np.testing.assert_allclose(both.sums_RQ, one.sums_RQ, rtol=1e-12)
    np.testing.assert_allclose(both.log_ratio_R.m2, one.log_ratio_R.m2, rtol=1e-9)
    np.testing.assert_array_equal(both.k3_R.exponent, one.k3_R.exponent)
    np.testing.assert_allclose(both.k3_R.mantissa, one.k3_R.mantissa, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 31, 33, 4_096, 4_097, 100_003])
@pytest.mark.parametrize("kind", ["distinct", "tied", "equal", "ascending"])
def test_highest_against_a_sort(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    values = {
        "distinct": rng.normal(0, 1, n),
        "tied": rng.integers(0, 50, n).astype(np.float64),
        "equal": np.zeros(n),
        "ascending": np.arange(n, dtype=np.float64),
    }[kind]
    expected = np.argsort(-values, kind="stable")[: schema.WORST_TOKENS]
    assert highest(values, schema.WORST_TOKENS).tolist() == expected.tolist()


def test_chunks_do_not_show() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(student_t2(rng, [65_535, 1, 1, 40_000]), rng)
    halves = [
        replace(
            batch,
            offsets_B1=batch.offsets_B1[rows] - batch.offsets_B1[rows][0],
            infer_logprobs_N=batch.infer_logprobs_N[tokens],
            train_logprobs_N=batch.train_logprobs_N[tokens],
        )
        for rows, tokens in ((slice(0, 3), slice(0, 65_536)), (slice(2, 5), slice(65_536, None)))
    ]
    merged = summarise(halves[0]).merge(summarise(halves[1]))
    places = {f"{end}.{name}" for end in ("worst_upper", "worst_lower") for name in ("row", "position")}
    assert_close(merged, summarise(batch), but=places)
