"""Remembered summaries are the ones that the bytes hold."""

from __future__ import annotations

import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, SummaryError, summarise, to_bytes
from tailwatch_collectors.types import BatchMeta
from tailwatch_service import recent
from tailwatch_service.recent import RecentSummaries
from tests.oracles.compare import assert_identical


def summary_of(step: int) -> Summary:
    batch = Batch.from_arrays(
        BatchMeta(step=step), infer_logprobs=[[-1.0, -2.0 - step]], train_logprobs=[[-1.5, -2.0]], reward=[float(step)]
    )
    return summarise(batch)


def test_read_once_from_memory_then_from_the_bytes() -> None:
    known = RecentSummaries()
    made = summary_of(1)
    data = known.to_bytes(made)
    assert data == to_bytes(made)
    assert known.from_bytes(data) is made
    again = known.from_bytes(data)
    assert again is not made
    assert_identical(again, made)


def test_no_more_than_it_may_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "_REMEMBERED", 2)
    known = RecentSummaries()
    made = [summary_of(step) for step in range(3)]
    data = [known.to_bytes(one) for one in made]
    assert [known.from_bytes(one) is own for one, own in zip(data, made, strict=True)] == [False, True, True]


def test_bytes_of_nobody_are_refused() -> None:
    with pytest.raises(SummaryError, match="not a Tailwatch summary"):
        RecentSummaries().from_bytes(b"{}")
