"""merge is a commutative monoid, and summarising is a homomorphism into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, from_bytes, merge, summarise, to_bytes
from tests.oracles.compare import assert_close, assert_identical
from tests.oracles.strategies import batches

MANY = settings(max_examples=500, deadline=None)
WORST = ("rank", "part", "row", "position", "token_id", "infer_logprob", "train_logprob", "seq_id")
NAMED = {f"{end}.{column}" for end in ("worst_upper", "worst_lower") for column in WORST}
"""What says which tokens the worst are."""


@given(batches(), batches())
@MANY
def test_commutative_to_the_bit(first: Batch, second: Batch) -> None:
    a, b = summarise(first), summarise(second)
    assert_identical(merge([a, b]), merge([b, a]))
    assert to_bytes(merge([a, b])) == to_bytes(merge([b, a]))


@given(batches(), batches(), batches())
@MANY
def test_associative(first: Batch, second: Batch, third: Batch) -> None:
    a, b, c = map(summarise, (first, second, third))
    assert_close(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(batches())
@MANY
def test_identity_to_the_bit(batch: Batch) -> None:
    summary = summarise(batch)
    assert_identical(merge([summary, Summary.empty()]), summary)
    assert_identical(merge([Summary.empty(), summary]), summary)
    assert_identical(merge([]), Summary.empty())


def joined(first: Batch, second: Batch) -> Batch:
    """Both as one batch; columns that only one has are left out of both."""
    values: dict[str, Any] = {}
    for name in Batch.__slots__:
        left, right = getattr(first, name), getattr(second, name)
        if name in {"meta", "offsets_B1"} or left is None or right is None:
            continue
        values[name] = left + right if isinstance(left, tuple) else np.concatenate((left, right))
    offsets = np.concatenate((first.offsets_B1, first.offsets_B1[-1] + second.offsets_B1[1:]))
    return Batch(meta=first.meta, offsets_B1=offsets, **values)


def like(batch: Batch, other: Batch) -> Batch:
    """The batch without the columns that the other does not have, under the other's key."""
    absent: dict[str, Any] = {
        n: None for n in Batch.__slots__ if n not in {"meta", "offsets_B1"} and getattr(other, n) is None
    }
    return replace(batch, meta=other.meta, **absent)


@given(batches(), batches())
@MANY
def test_a_batch_is_the_merge_of_its_parts(first: Batch, second: Batch) -> None:
    second = replace(like(second, first), seq_id=None)
    first = replace(like(first, second), seq_id=None)
    whole = summarise(joined(first, second))
    parts = merge([summarise(first), summarise(second)])
    # Rows are numbered within a batch; equal log ratios may therefore come in another order.
    assert_close(whole, parts, but=NAMED)
    np.testing.assert_array_equal(whole.worst_upper.priority, parts.worst_upper.priority)
    np.testing.assert_array_equal(whole.worst_lower.priority, parts.worst_lower.priority)


@given(batches(), st.randoms(use_true_random=False))
@MANY
def test_the_order_of_sequences_does_not_matter(batch: Batch, random: Any) -> None:
    order = list(range(batch.sequences))
    random.shuffle(order)
    spans = [np.arange(batch.offsets_B1[row], batch.offsets_B1[row + 1]) for row in order]
    tokens = np.concatenate([np.empty(0, np.int64), *spans])
    values: dict[str, Any] = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if value is not None and name not in {"meta", "offsets_B1"}:
            values[name] = (
                tuple(value[i] for i in order)
                if isinstance(value, tuple)
                else value[tokens if name.endswith("_N") else order]
            )
    lengths = batch.lengths_B[order]
    shuffled = replace(batch, offsets_B1=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), **values)
    assert_close(summarise(shuffled), summarise(batch), but=NAMED)


@given(batches())
@MANY
def test_bytes_round_trip_to_the_bit(batch: Batch) -> None:
    summary = summarise(batch)
    data = to_bytes(summary)
    assert_identical(from_bytes(data), summary)
    assert to_bytes(from_bytes(data)) == data
    twice = merge([summary, summary])
    assert_identical(from_bytes(to_bytes(twice)), twice)
