"""What must not change a summary, and what must change it in a known way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema, summarise
from tailwatch_collectors.summary.scaled import ScaledSums, sum_exp
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.registry import METRICS
from tests.oracles.compare import assert_identical
from tests.oracles.strategies import batches, log_probs, sequences

MANY = settings(max_examples=500, deadline=None)
META = BatchMeta(step=1)


@given(sequences(), st.integers(0, 5), st.data())
@MANY
def test_layout_and_padding_do_not_matter(rows: list[Any], extra: int, data: st.DataObject) -> None:
    lengths = [len(row) for row in rows]
    width = max(lengths, default=0) + extra
    filler = data.draw(st.sampled_from([0.0, 1.0, math.nan, -7.0]))
    flat = np.concatenate([np.empty((0, 2), np.float32), *rows])
    infer, train = flat[:, 0], flat[:, 1]
    expected = summarise(
        Batch.from_arrays(META, infer_logprobs=infer, train_logprobs=train, cu_seqlens=np.cumsum([0, *lengths]))
    )
    if rows:
        listed = Batch.from_arrays(
            META, infer_logprobs=[row[:, 0] for row in rows], train_logprobs=[torch.tensor(row[:, 1]) for row in rows]
        )
        assert_identical(summarise(listed), expected)
    for padding in ("right", "left"):
        padded = np.full((2, len(rows), width), filler, np.float32)
        for i, row in enumerate(rows):
            padded[:, i, width - len(row) if padding == "left" else 0 :][:, : len(row)] = row.T
        batch = Batch.from_arrays(
            META, infer_logprobs=padded[0], train_logprobs=torch.tensor(padded[1]), lengths=lengths, padding=padding
        )
        assert_identical(summarise(batch), expected)


@given(batches(), st.floats(width=32))
@MANY
def test_masked_out_tokens_do_not_matter(batch: Batch, filler: float) -> None:
    if batch.mask_N is None:
        batch = replace(batch, mask_N=np.arange(batch.tokens) % 3 != 0)
    assert batch.mask_N is not None
    changed = replace(
        batch,
        infer_logprobs_N=np.where(batch.mask_N, batch.infer_logprobs_N, np.float32(filler)),
        train_logprobs_N=np.where(batch.mask_N, batch.train_logprobs_N, np.float32(-filler)),
    )
    assert_identical(summarise(changed), summarise(batch))


@given(st.lists(st.lists(st.integers(-400, 0), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(-90, 90))
@MANY
def test_a_constant_on_the_inference_side_shifts_every_log_ratio(steps: list[list[int]], constant: int) -> None:
    # Sixteenths are exact in float32, so that d + c is exactly d shifted.
    c = constant / 16
    train = [np.array(row, np.float32) / 16 - 60 for row in steps]
    infer = [row[::-1] / 2 - 30 for row in train]
    before = summarise(Batch.from_arrays(META, infer_logprobs=infer, train_logprobs=train))
    shifted = [(row + c).astype(np.float32) for row in infer]
    after = summarise(Batch.from_arrays(META, infer_logprobs=shifted, train_logprobs=train))
    old, new = metrics(before).values, metrics(after).values
    for name in ("log_ratio_mean", "log_ratio_min", "log_ratio_max"):
        assert math.isclose(new[name], old[name] - c, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(new["log_ratio_std"], old["log_ratio_std"], rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(new["kl_k1"], old["kl_k1"] + c, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(new["log_ppl_gap"], old["log_ppl_gap"] + c, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(new["ess_token"], old["ess_token"], rel_tol=1e-9)
    assert math.isclose(new["ratio_mean"], old["ratio_mean"] * math.exp(-c), rel_tol=1e-12)


@given(batches())
@MANY
def test_every_metric_is_a_finite_value_or_missing(batch: Batch) -> None:
    computed = metrics(summarise(batch))
    assert set(computed.values) | set(computed.missing) == set(METRICS)
    assert not set(computed.values) & set(computed.missing)
    assert all(math.isfinite(value) for value in computed.values.values())
    for name in ("kl_k3", "js", "kl_reverse_k3", "kl_unweighted_reverse_k3", "kl_k2", "chi2_token", "tv"):
        assert computed.values.get(name, 0.0) >= 0, name
    for name, count in (("ess_token", "tokens"), ("ess_sequence", "sequences")):
        if name in computed.values:
            assert 1 / computed.values[count] <= computed.values[name] <= 1


@given(sequences(values=log_probs))
@MANY
def test_counts_add_up(rows: list[Any]) -> None:
    flat = np.concatenate([np.empty((0, 2), np.float32), *rows])
    batch = Batch.from_arrays(
        META, infer_logprobs=flat[:, 0], train_logprobs=flat[:, 1], cu_seqlens=np.cumsum([0, *map(len, rows)])
    )
    summary = summarise(batch)
    assert summary.tokens == len(flat) == int(summary.grid.counts.sum()) == int(summary.bin_grid.counts.sum())
    assert summary.sequences == sum(len(row) > 0 for row in rows) == int(summary.length_counts.sum())
    d = flat[:, 1].astype(np.float64) - flat[:, 0].astype(np.float64)
    assert summary.above.tolist() == [int((d > t).sum()) for t in schema.LOG_RATIO_THRESHOLDS]
    assert summary.below.tolist() == [int((-d > t).sum()) for t in schema.LOG_RATIO_THRESHOLDS]
    p_edges = schema.PROBABILITY_LOG_EDGES
    bins = np.array([int((x >= p_edges).sum()) for x in flat[:, 0]], np.int64)
    assert summary.bins.counts_RC[:, 0].tolist() == np.bincount(bins, minlength=20).tolist()
    for index in np.unique(bins):
        inside = d[bins == index]
        assert summary.bins.min_R[index] == inside.min()
        assert summary.bins.max_R[index] == inside.max()
        assert summary.bins.counts_RC[index, 1] == int((np.abs(inside) > math.log(2)).sum())
    worst = np.sort(d)[::-1][: schema.WORST_TOKENS]
    assert summary.worst_upper.priority.tolist() == worst.tolist()
    assert summary.worst_lower.priority.tolist() == np.sort(-d)[::-1][: schema.WORST_TOKENS].tolist()


numbers = st.floats(-5_000, 5_000) | st.floats(-1e-3, 1e-3) | st.sampled_from([0.0, 5_000.0, -5_000.0, 700.0, -745.0])


@given(st.lists(numbers, max_size=20), st.lists(numbers, max_size=20))
@MANY
def test_scaled_sums_against_fifty_digits(first: list[float], second: list[float]) -> None:
    exact = mpmath.fsum(mpmath.exp(mpmath.mpf(x)) for x in first + second)
    total: ScaledSums = sum_exp(np.array([first])).merge(sum_exp(np.array([second])))
    value = mpmath.ldexp(mpmath.mpf(float(total.mantissa[0])), int(total.exponent[0]))
    assert abs(value - exact) <= mpmath.mpf("1e-13") * exact
    if exact > 0:
        assert abs(total.log(0) - float(mpmath.log(exact))) <= 1e-12 * max(1, abs(total.log(0)))
        assert 0.5 <= total.mantissa[0] < 1
