"""numba, numpy and the reference compute one summary; neither threads, layout, order nor padding change it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import merge, summarise
from tests.oracles.backends import assert_agree
from tests.oracles.compare import assert_identical
from tests.oracles.strategies import batches

MANY = settings(max_examples=500, deadline=None)
PLACES = {f"{end}.{column}" for end in ("worst_upper", "worst_lower") for column in ("row", "position", "seq_id")}


@given(batches())
@MANY
def test_numba_is_numpy(batch: Batch) -> None:
    assert_agree(summarise(batch, backend="numba", sample=True), summarise(batch, backend="numpy", sample=True))


@given(batches())
@MANY
def test_numba_is_the_reference(batch: Batch) -> None:
    assert_agree(summarise(batch, backend="numba", sample=True), summarise(batch, backend="reference", sample=True))


def repeated(batch: Batch, times: int) -> Batch:
    """The batch's sequences over and over: several blocks and chunks of it."""
    values: dict[str, Any] = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if value is not None and name not in {"meta", "offsets_B1"}:
            values[name] = value * times if isinstance(value, tuple) else np.tile(value, times)
    lengths = np.tile(batch.lengths_B, times)
    return replace(batch, offsets_B1=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), **values)


@given(batches(), st.integers(2, 5))
@MANY
def test_any_number_of_threads(batch: Batch, threads: int) -> None:
    many = repeated(batch, 1 + 70_000 // max(batch.tokens, 700))
    assert_identical(summarise(many, backend="numba", threads=threads), summarise(many, backend="numba"))


@given(batches(), st.integers(2, 9))
@MANY
def test_what_is_repeated_is_merged(batch: Batch, times: int) -> None:
    batch = replace(batch, seq_id=None)
    one = summarise(batch, backend="numba")
    whole = summarise(repeated(batch, times), backend="numba")
    picks = {f"{end}.{column}" for end in ("worst_upper", "worst_lower")
             for column in ("row", "position", "infer_logprob", "train_logprob", "token_id", "seq_id")}  # fmt: skip
    parts = merge([one] * times)
    but = picks | {"counters"}
    for name in ("tokens", "sequences", "tokens_identical", "tokens_zero_filler", "clusters"):
        assert whole.count(name) == parts.count(name)
    from tests.oracles.compare import assert_close

    assert_close(whole, parts, but=but)
