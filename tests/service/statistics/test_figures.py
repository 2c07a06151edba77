"""What the figures are drawn from: envelope, slices, histogram, survival and the worst tokens, against plain numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, merge, summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.envelope import envelope
from tailwatch_service.statistics.histogram import histogram, survival, tail_probability
from tailwatch_service.statistics.slices import slices
from tailwatch_service.statistics.tails import ParetoFit
from tailwatch_service.statistics.worst import worst_tokens
from tests.oracles.families import batch_of, student_t2

COARSE = 2.0**-6
"""Half a cell at five mantissa bits."""


def policy(tokens: int = 20_000) -> Batch:
    """Inference probabilities over all bins, with a mismatch that grows as they fall."""
    rng = np.random.default_rng(8)
    p = np.concatenate(
        (rng.uniform(0, 1, tokens), 10.0 ** rng.uniform(-7, 0, tokens), 1 - 10.0 ** rng.uniform(-5, 0, tokens))
    )
    infer = np.log(np.maximum(p, 1e-9)).astype(np.float32)
    train = np.minimum(infer + (1 - p) * 0.2 * rng.standard_t(3, len(p)), 0).astype(np.float32)
    return Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train)


def log_ratio(batch: Batch) -> NDArray[np.float64]:
    return batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N


def order_statistic(values: NDArray[np.float64], percent: int) -> float:
    return float(np.sort(values)[max(1, math.ceil(percent * len(values) / 100)) - 1])


def test_envelope_against_sorted_tokens() -> None:
    batch = policy()
    d, p = log_ratio(batch), batch.infer_logprobs_N
    bins = envelope(summarise(batch))
    assert [b.lower for b in bins] == [0.0, *[b.upper for b in bins[:-1]]]
    assert bins[-1].upper == 1
    for b in bins:
        low = -np.inf if b.lower == 0 else np.float32(math.log(b.lower))
        high = np.inf if b.upper == 1 else np.float32(math.log(b.upper))
        inside = d[(p >= low) & (p < high)]
        assert b.tokens == len(inside) > 0
        for value, percent in ((b.p2, 2), (b.p50, 50), (b.p98, 98)):
            exact = order_statistic(inside, percent)
            assert abs(value - exact) <= COARSE * abs(exact) + 2**-30


def test_envelope_widths_against_sorted_tokens() -> None:
    batch = policy()
    d, p = log_ratio(batch), batch.infer_logprobs_N
    values = metrics(summarise(batch)).values
    for name, inside in (
        ("envelope_width_low", d[p < np.float32(math.log(0.1))]),
        ("envelope_width_high", d[p >= np.float32(math.log(0.9))]),
    ):
        low, high = order_statistic(inside, 2), order_statistic(inside, 98)
        assert values[name] == pytest.approx(high - low, abs=COARSE * (abs(low) + abs(high)) * 1.001)


def test_envelope_of_nothing_is_nan() -> None:
    bins = envelope(Summary.empty())
    assert len(bins) == 20
    assert all(b.tokens == 0 and math.isnan(b.p2) and math.isnan(b.p50) and math.isnan(b.p98) for b in bins)


def test_an_edge_belongs_to_the_bin_above_it() -> None:
    edge = np.float32(math.log(0.1))
    infer = np.array([np.nextafter(edge, np.float32(-9)), edge, 0.0], np.float32)
    bins = envelope(summarise(Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=infer)))
    assert {b.lower: b.tokens for b in bins if b.tokens} == {0.05: 1, 0.1: 1, 0.9999: 1}


def test_slices_against_numpy() -> None:
    batch = policy(2_000)
    d, p = log_ratio(batch), batch.infer_logprobs_N
    for row in slices(summarise(batch))["probability"]:
        assert row.lower is not None
        assert row.upper is not None
        low = -np.inf if row.lower == 0 else np.float32(math.log(row.lower))
        high = np.inf if row.upper == 1 else np.float32(math.log(row.upper))
        inside = d[(p >= low) & (p < high)]
        long = inside.astype(np.longdouble)
        expected = {
            "tokens": len(inside),
            "log_ratio_mean": float(long.mean()),
            "log_ratio_abs_mean": float(np.abs(long).mean()),
            "log_ratio_std": float(long.std()),
            "log_ratio_min": inside.min(),
            "log_ratio_max": inside.max(),
            "kl_k3": float((np.expm1(long) - long).mean()),
            "outside_2x": (np.abs(inside) > math.log(2)).mean(),
            "outside_5x": (np.abs(inside) > math.log(5)).mean(),
            "infer_complement_mean": -np.expm1(p[(p >= low) & (p < high)].astype(np.float64)).mean(),
        }
        for name, value in expected.items():
            assert row.metrics[name] == pytest.approx(value, rel=1e-10, abs=1e-14), (row.label, name)


def test_lag_slices_against_numpy() -> None:
    rng = np.random.default_rng(1)
    rows = student_t2(rng, [5] * 60)
    versions = rng.integers(-5, 31, 60)
    batch = batch_of(rows, rng, meta=BatchMeta(step=1, train_version=30), infer_version=np.abs(versions))
    d, lag = log_ratio(batch), np.repeat(30 - np.abs(versions), 5)
    found = {row.label: row for row in slices(summarise(batch))["lag"]}
    bounds = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-8": (5, 8), "9-16": (9, 16), "17+": (17, 99)}
    for label, (low, high) in bounds.items():
        inside = d[(lag >= low) & (lag <= high)]
        if len(inside) == 0:
            assert label not in found
            continue
        assert found[label].lower == low
        assert found[label].upper == (None if label == "17+" else high)
        assert found[label].metrics["tokens"] == len(inside)
        assert found[label].metrics["kl_k3"] == pytest.approx(float((np.expm1(inside) - inside).mean()), rel=1e-9)
        assert found[label].metrics["log_ratio_max"] == inside.max()
    assert sum(row.metrics["tokens"] for row in found.values()) == 300


def test_unknown_and_negative_lags_have_their_own_rows() -> None:
    known = Batch.from_arrays(
        BatchMeta(step=1, train_version=1), infer_logprobs=[[-1.0]], train_logprobs=[[-1.0]], infer_version=[5]
    )
    unknown = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0, -1.0]], train_logprobs=[[-2.0, -1.0]])
    rows = slices(merge([summarise(known), summarise(unknown)]))["lag"]
    assert [(row.label, row.lower, row.metrics["tokens"]) for row in rows] == [
        ("unknown", None, 2),
        ("negative", None, 1),
    ]


def sliced(**columns: Any) -> Batch:
    """Six sequences of 40 tokens."""
    rng = np.random.default_rng(4)
    return batch_of(student_t2(rng, [40] * 6), rng, meta=BatchMeta(step=1, rank=11, train_version=9), **columns)


def test_every_slice_against_numpy() -> None:
    turn = np.tile(np.repeat([-1, 0, 3, 7, 30], 8), 6)
    source = ["web 10", "web 9", "math", "math", "web 10", "code"]
    batch = sliced(turn=turn, source=source, advantage=[1.0, -1.0, 0.0, math.nan, 2.0, -0.5], infer_version=[9] * 6)
    d, rows = log_ratio(batch), slices(summarise(batch))
    position = np.tile(np.arange(40), 6)
    inside = {
        "position": {"0-1": position < 2, "2-3": position // 2 == 1, "4-7": position // 4 == 1}
        | {"8-15": position // 8 == 1, "16-31": position // 16 == 1, "32-63": position >= 32},
        "turn": {"0": turn == 0, "3": turn == 3, "7+": turn >= 7, "negative": turn < 0},
        "source": {name: np.repeat(np.array(source) == name, 40) for name in ("code", "math", "web 9", "web 10")},
        "advantage": {
            sign: np.repeat(flags, 40)
            for sign, flags in {
                "negative": [0, 1, 0, 0, 0, 1],
                "zero": [0, 0, 1, 0, 0, 0],
                "positive": [1, 0, 0, 0, 1, 0],
                "unknown": [0, 0, 0, 1, 0, 0],
            }.items()
        },
        "lag": {"0": np.ones(240)},
        "rank": {"11": np.ones(240)},
    }
    assert list(rows) == ["probability", "advantage", "lag", "position", "rank", "source", "turn"]
    for name, buckets in inside.items():
        assert [row.label for row in rows[name]] == list(buckets), name
        for row in rows[name]:
            mine = d[np.asarray(buckets[row.label], bool)]
            assert row.metrics["tokens"] == len(mine)
            assert row.metrics["log_ratio_std"] == pytest.approx(mine.std(), rel=1e-9)
            assert row.metrics["kl_k3"] == pytest.approx(float((np.expm1(mine) - mine).mean()), rel=1e-9)
            assert row.metrics["outside_2x"] == pytest.approx(float((np.abs(mine) > math.log(2)).mean()))
    edges = {(name, row.label): (row.lower, row.upper) for name, part in rows.items() for row in part}
    assert edges["position", "0-1"] == (0, 1)
    assert edges["position", "32-63"] == (32, 63)
    assert (edges["turn", "3"], edges["turn", "7+"], edges["turn", "negative"]) == ((3, 3), (7, None), (None, None))
    assert edges["source", "math"] == edges["rank", "11"] == edges["advantage", "zero"] == (None, None)


def test_names_beyond_the_limit_come_last_and_numbers_by_size() -> None:
    many = [f"set {n}" for n in range(40)]
    batch = batch_of([np.full(3, 0.1)] * 40, np.random.default_rng(2), source=many)
    labels = [row.label for row in slices(summarise(batch))["source"]]
    assert len(labels) == 33
    assert labels[-1] == "(other)"
    assert labels[:-1] == sorted(labels[:-1], key=lambda label: int(label.split()[1]))


def test_a_slice_nobody_knows_is_shown_as_it_comes() -> None:
    summary = summarise(sliced(source=["b", "a", "²", "b", "a", "10"]))
    renamed = replace(summary, slices=dict(summary.slices) | {"expert": summary.slices["source"]})
    found = slices(renamed)["expert"]
    assert [(row.label, row.lower, row.upper) for row in found] == [(x, None, None) for x in ("10", "a", "b", "²")]
    assert [row.metrics for row in found] == [row.metrics for row in slices(renamed)["source"]]


def test_extreme_tokens_in_slices() -> None:
    batch = Batch.from_arrays(
        BatchMeta(step=1), infer_logprobs=[[-400.0, -400.0, -2.5]], train_logprobs=[[-1.0, -90.0, -2.0]]
    )
    row = slices(summarise(batch))["probability"][0]
    assert row.metrics["kl_k3"] == pytest.approx((math.exp(399) + math.exp(310)) / 2, rel=1e-12)


@pytest.mark.parametrize(
    "batch", [policy(3_000), batch_of(student_t2(np.random.default_rng(0), [999]), np.random.default_rng(0))]
)
def test_histogram_counts_every_token_once(batch: Batch) -> None:
    d = log_ratio(batch)
    drawn = histogram(summarise(batch))
    assert int(drawn.counts.sum()) + drawn.below + drawn.above == len(d)
    assert len(drawn.edges) == len(drawn.counts) + 1
    assert (np.diff(drawn.edges) > 0).all()
    assert drawn.counts[0] > 0
    assert drawn.counts[-1] > 0
    # float32(d) may round a value onto an edge: compare with values rounded alike, magnitudes from their lower edge.
    d32 = d.astype(np.float32).astype(np.float64)
    for low, high, count in zip(drawn.edges[:-1], drawn.edges[1:], drawn.counts, strict=True):
        inside = (
            (d32 >= low) & (d32 < high)
            if low >= 0
            else (d32 > low) & (d32 <= high)
            if high <= 0
            else np.abs(d32) < high
        )
        assert count == int(inside.sum())


def test_histogram_of_nothing_and_of_the_outside() -> None:
    assert len(histogram(Summary.empty()).counts) == 0
    batch = Batch.from_arrays(
        BatchMeta(step=1), infer_logprobs=[[-1.0, -3e6, -1.0]], train_logprobs=[[-3e6, -1.0, -1.0]]
    )
    drawn = histogram(summarise(batch))
    assert (drawn.below, drawn.above, drawn.counts.tolist()) == (1, 1, [1])


def test_survival_against_sorted_tokens() -> None:
    batch = policy(3_000)
    d = log_ratio(batch)
    found = survival(summarise(batch))
    for tail, values in ((found.upper, d), (found.lower, -d)):
        assert (np.diff(tail.log_ratio) > 0).all()
        for x, share in zip(tail.log_ratio[::20], tail.share[::20], strict=True):
            assert share == pytest.approx((values.astype(np.float32) >= x).mean(), rel=1e-12)
        assert isinstance(tail.fit, ParetoFit)
        at_threshold = tail_probability(tail.fit, np.array([tail.fit.log_threshold]))
        assert at_threshold[0] == pytest.approx(tail.fit.share)
        beyond = tail.fit.log_threshold + np.linspace(0, 0.5, 9)
        empirical = np.array([(values > x).mean() for x in beyond])
        np.testing.assert_allclose(tail_probability(tail.fit, beyond), empirical, atol=0.2 * tail.fit.share)


def test_the_worst_tokens_lead_to_their_place() -> None:
    rng = np.random.default_rng(5)
    batches = []
    for rank in range(3):
        rows = student_t2(rng, [40, 60])
        ids = rng.integers(0, 99, 100)
        meta = BatchMeta(step=1, rank=rank)
        batches.append(batch_of(rows, rng, meta=meta, token_ids=ids, seq_id=[f"{rank}a", f"{rank}b"]))
    every: list[tuple[float, Any]] = []
    for batch in batches:
        assert batch.token_ids_N is not None
        assert batch.seq_id is not None
        for t, value in enumerate(log_ratio(batch)):
            row = int(t >= 40)
            place = (batch.meta.rank, row, t - 40 * row, int(batch.token_ids_N[t]), batch.seq_id[row])
            every.append((float(value), place))
    every.sort(key=lambda pair: pair[0])
    found = worst_tokens(merge(summarise(batch) for batch in reversed(batches)))
    assert len(found) == 64
    assert [abs(t.log_ratio) for t in found] == sorted((abs(t.log_ratio) for t in found), reverse=True)
    expected = {(value, place) for value, place in every[:32] + every[-32:]}
    assert {(t.log_ratio, (t.rank, t.row, t.position, t.token_id, t.seq_id)) for t in found} == expected
    for token in found:
        assert token.log_ratio == pytest.approx(token.train_logprob - token.infer_logprob)


def test_few_tokens_are_not_listed_at_both_ends() -> None:
    found = worst_tokens(
        summarise(Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[[-1.0, -1.0]], train_logprobs=[[-1.5, -0.5]]))
    )
    assert [t.log_ratio for t in found] == [0.5, -0.5]
    assert found[0].token_id is None
    assert found[0].seq_id is None
