"""The outbox: order, bounds in items and bytes, what goes when it is full, and who is woken."""

from __future__ import annotations

import time

import pytest

from tailwatch_collectors.items import BatchItem, Item, NoteItem
from tailwatch_collectors.outbox import Outbox, Policy


def _item(size: int = 10, seq: int = 0) -> NoteItem:
    return NoteItem(path="events", body=b"x" * size, key="k", seq=seq)


def _batch(size: int = 10, seq: int = 0) -> BatchItem:
    return BatchItem(source=None, form="tokens", seq=seq, nbytes=size)


def _reasons(outbox: Outbox, item: Item) -> list[str]:
    return [reason for reason, _ in outbox.put(item)]


def test_first_in_first_out() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    items = [_item(), _item(), _item()]
    for item in items:
        assert outbox.put(item) == []

    assert outbox.claim() is items[0]
    assert outbox.claim() is items[1]
    outbox.release(items[0])
    assert outbox.claim() is items[0]
    assert outbox.last() is items[2]
    assert (len(outbox), outbox.nbytes) == (3, 30)
    assert outbox.remove(items[0])
    assert not outbox.remove(items[0])
    assert outbox.items() == tuple(items[1:])
    assert outbox.clear() == 2
    assert outbox.claim() is outbox.last() is None
    assert outbox.nbytes == 0


def test_equal_items_are_not_the_same_item() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    one, other = _item(), _item()
    outbox.put(one)

    assert not outbox.remove(other)
    assert len(outbox) == 1


def test_bounds() -> None:
    outbox = Outbox(items=2, nbytes=100, policy="drop-newest")

    assert _reasons(outbox, _item(101)) == ["too_large"]
    assert _reasons(outbox, _item(60)) == []
    assert _reasons(outbox, _item(41)) == ["queue_full"]
    assert _reasons(outbox, _item(40)) == []
    assert _reasons(outbox, _item(0)) == ["queue_full"]
    assert (len(outbox), outbox.nbytes, outbox.fill) == (2, 100, 1.0)


def test_the_oldest_batches_go_first_and_notes_only_where_no_batch_can() -> None:
    outbox = Outbox(items=10, nbytes=100)
    note, first, second = _item(30), _batch(30), _batch(30)
    for item in (note, first, second):
        outbox.put(item)
    dropped = outbox.put(_batch(50))

    assert [item for _, item in dropped] == [first, second]
    last = outbox.last()
    assert outbox.items() == (note, last)
    assert [item for _, item in outbox.put(_item(90))] == [last, note]


def test_what_is_under_way_is_never_dropped() -> None:
    outbox = Outbox(items=2, nbytes=100)
    for _ in range(2):
        outbox.put(_batch())
        outbox.claim()
    new = _batch()

    assert outbox.put(new) == [("queue_full", new)]
    assert len(outbox) == 2


def test_a_sample_keeps_old_and_new_alike() -> None:
    kept = [0, 0]
    for _ in range(200):
        outbox = Outbox(items=8, nbytes=10_000, policy="sample")
        for seq in range(64):
            outbox.put(_batch(1, seq))
        assert len(outbox) == 8
        for item in outbox.items():
            kept[item.seq >= 32] += 1

    # Each of the 64 with the same probability: 800 of each half expected, standard deviation about 19.
    assert 700 < kept[0] < 900


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest", "sample"])
def test_every_policy_keeps_the_bounds_and_accounts_for_everything(policy: Policy) -> None:
    outbox = Outbox(items=5, nbytes=100, policy=policy)
    dropped = sum(len(outbox.put(_batch(seq % 40, seq))) for seq in range(300))

    assert len(outbox) <= 5
    assert outbox.nbytes <= 100
    assert len(outbox) + dropped == 300


def test_what_was_recorded_before_is_known_by_its_number() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    items = [_item(seq=seq) for seq in range(3)]
    for item in items:
        outbox.put(item)
    outbox.remove(items[0])

    assert not outbox.holds_up_to(0)
    assert outbox.holds_up_to(1)


def test_a_put_wakes_who_waits_and_is_never_missed() -> None:
    outbox = Outbox(items=1000, nbytes=100_000)
    for _ in range(100):
        outbox.put(_item())
    started = time.monotonic()
    outbox.wait(300)

    assert time.monotonic() - started < 100
    outbox.wait(0)
    outbox.wait(-1)


def test_the_scribe_is_woken_where_there_is_something_for_the_disk() -> None:
    outbox = Outbox(items=4, nbytes=1000)
    outbox.put(_item())
    outbox.put(_item())
    assert outbox.scribe_bell.empty()
    outbox.put(_item())
    assert not outbox.scribe_bell.empty()
    outbox.scribe_bell.get()
    outbox.clear()
    outbox.spill_all = True
    outbox.put(_item())

    assert not outbox.scribe_bell.empty()


def test_a_quiet_outbox_wakes_nobody_for_a_put() -> None:
    outbox = Outbox(items=10, nbytes=1000)
    outbox.quiet = True
    outbox.put(_item())
    started = time.monotonic()
    outbox.wait(0.05)

    assert time.monotonic() - started >= 0.04
