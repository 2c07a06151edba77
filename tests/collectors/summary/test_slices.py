"""Slices keep a bounded number of names, the same ones whatever the order of merging."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, from_bytes, merge, schema, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta
from tests.oracles.compare import assert_close, assert_identical


def batch_of(names: list[str], *, seed: int, rank: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    infer_BT = -rng.exponential(1.0, (len(names), 3)).astype(np.float32)
    return Batch.from_arrays(
        BatchMeta(step=1, rank=rank),
        infer_logprobs=infer_BT,
        train_logprobs=np.minimum(infer_BT + rng.normal(0, 0.1, infer_BT.shape).astype(np.float32), 0),
        source=names,
    )


@functools.cache
def one(index: int) -> Summary:
    """One of the batches that properties are drawn from: 20 names of 60."""
    rng = np.random.default_rng(index)
    return summarise(batch_of([f"env-{name}" for name in rng.integers(0, 60, 20)], seed=index))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=500)
def test_which_names_are_kept_does_not_depend_on_the_order(indices: list[int], random: object) -> None:
    summaries = [one(index) for index in indices]
    whole = merge(summaries)
    shuffled = list(summaries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert_close(merge(shuffled), whole)
    nested = functools.reduce(lambda right, left: left.merge(right), reversed(summaries))
    assert_close(nested, whole)
    assert_identical(summaries[0].merge(whole), whole.merge(summaries[0]))
    source = whole.slices["source"]
    assert len(source.labels) <= schema.SLICE_LIMITS["source"] + 1
    assert int(source.stats.counts_RC[:, 0].sum()) == whole.tokens
    assert int(source.octaves.counts.sum()) == whole.tokens


def test_a_kept_name_never_lost_a_token() -> None:
    """The names of smallest hash are kept from the first merge on, so their counts are whole."""
    merged = merge(one(index) for index in range(20))
    expected: dict[str, int] = {}
    for index in range(20):
        rng = np.random.default_rng(index)
        for name in rng.integers(0, 60, 20):
            expected[f"env-{name}"] = expected.get(f"env-{name}", 0) + 3
    source = merged.slices["source"]
    assert len(expected) > schema.SLICE_LIMITS["source"]
    assert schema.OTHER in source.labels
    for label, count in zip(source.labels, source.stats.counts_RC[:, 0].tolist(), strict=True):
        if label != schema.OTHER:
            assert count == expected[label], label


def test_ten_thousand_sources_are_thirty_three_buckets() -> None:
    names = [f"source-{index}" for index in range(10_000)]
    summary = summarise(batch_of(names, seed=1))
    assert len(summary.slices["source"].labels) == schema.SLICE_LIMITS["source"] + 1
    assert len(to_bytes(summary)) < 64 * 1024
    assert_identical(from_bytes(to_bytes(summary)), summary)


def test_more_ranks_than_a_slice_keeps() -> None:
    merged = merge(summarise(batch_of(["a"], seed=rank, rank=rank)) for rank in range(100))
    ranks = merged.slices["rank"]
    assert len(ranks.labels) == 65
    assert int(ranks.stats.counts_RC[:, 0].sum()) == 300
    other = ranks.labels.index(schema.OTHER)
    assert int(ranks.stats.counts_RC[other, 0]) == 3 * 36


def test_a_sample_is_uniform_and_merges() -> None:
    """Of a merge it is the sample of the whole: the tokens drawn highest."""
    summaries = [summarise(batch_of(["a"] * 400, seed=seed, rank=seed), sample=True) for seed in range(5)]
    merged = merge(summaries)
    assert len(merged.sample.priority) == schema.SAMPLE_TOKENS
    drawn = np.concatenate([summary.sample.priority for summary in summaries])
    np.testing.assert_array_equal(merged.sample.priority, np.sort(drawn)[::-1][: schema.SAMPLE_TOKENS])
    # 256 of 6,000: about 51 from each rank, sd 6.4; the first position as often as the last.
    per_rank = np.bincount(merged.sample.rank, minlength=5)
    assert per_rank.min() > 51 - 4 * 6.4
    assert per_rank.max() < 51 + 4 * 6.4
    assert abs(int((merged.sample.position == 0).sum()) - 256 / 3) < 4 * 7.5
    assert len(summarise(batch_of(["a"], seed=1)).sample.priority) == 0
