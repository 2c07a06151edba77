"""The outbox: order, bounds in items and bytes, and what leaves it."""

from __future__ import annotations

import time

import numpy as np

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.outbox import NoteItem, Outbox, size_of
from tailwatch_collectors.types import BatchMeta


def _item(size: int = 10) -> NoteItem:
    return NoteItem(path="events", body=b"x" * size, key="k")


def test_first_in_first_out() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    items = [_item(), _item(), _item()]
    for item in items:
        assert outbox.put(item) is None

    assert outbox.head() is items[0]
    assert outbox.last() is items[2]
    assert (len(outbox), outbox.nbytes) == (3, 30)
    assert outbox.remove(items[0])
    assert not outbox.remove(items[0])
    assert not outbox.holds(items[0])
    assert outbox.head() is items[1]
    assert outbox.clear() == 2
    assert outbox.head() is outbox.last() is None
    assert outbox.nbytes == 0


def test_equal_items_are_not_the_same_item() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    one, other = _item(), _item()
    outbox.put(one)

    assert not outbox.remove(other)
    assert len(outbox) == 1


def test_bounds() -> None:
    outbox = Outbox(items=2, nbytes=100)

    assert outbox.put(_item(101)) == "too_large"
    assert outbox.put(_item(60)) is None
    assert outbox.put(_item(41)) == "queue_full"
    assert outbox.put(_item(40)) is None
    assert outbox.put(_item(0)) == "queue_full"
    assert (len(outbox), outbox.nbytes) == (2, 100)


def test_a_put_wakes_who_waits_and_is_never_missed() -> None:
    outbox = Outbox(items=1000, nbytes=100_000)
    for _ in range(100):
        outbox.put(_item())
    started = time.monotonic()
    outbox.wait(300)

    assert time.monotonic() - started < 100
    outbox.wait(0)
    outbox.wait(-1)


def test_size_counts_arrays_and_strings() -> None:
    batch = Batch.from_arrays(
        BatchMeta(step=0),
        infer_logprobs=np.zeros((2, 3)),
        train_logprobs=np.zeros((2, 3)),
        mask=np.ones((2, 3), bool),
        source=["a", "bcd"],
    )

    assert size_of(batch) == 3 * 8 + 2 * 6 * 4 + 6 + 4 + 2 * 56
