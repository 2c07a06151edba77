from __future__ import annotations

import threading

import pytest

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import events, runs
from tailwatch_service.storage.database import Database


def test_events_are_numbered_without_gaps(db: Database, run_id: str) -> None:
    made = events.append(db, run_id, kind="checkpoint", now=5.0, step=7, attempt=1, payload={"path": "x"})
    assert events.after(db, run_id, seq=2) == [made]
    assert (made.seq, made.step, made.payload) == (3, 7, {"path": "x"})
    assert events.bounds(db, run_id) == (1, 3)
    assert events.bounds(db, "nowhere") == (0, 0)
    assert [e.seq for e in events.after(db, run_id, seq=0, limit=2)] == [1, 2]
    assert [e.seq for e in events.last(db, run_id, limit=2)] == [2, 3]


def test_an_event_that_was_rolled_back_leaves_no_hole(db: Database, run_id: str) -> None:
    def fail() -> None:
        with db.write() as connection:
            events.insert(connection, run_id, kind="lost", now=1.0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert events.append(db, run_id, kind="next", now=2.0).seq == 3


def test_concurrent_events_share_one_sequence(db: Database, run_id: str) -> None:
    def send() -> None:
        for _ in range(10):
            events.append(db, run_id, kind="weight_sync", now=1.0)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [e.seq for e in events.after(db, run_id, seq=0)] == list(range(1, 43))
    assert runs.get(db, run_id, now=1.0).last_event_seq == 42


def test_an_unknown_run_has_no_events(db: Database) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        events.append(db, "nowhere", kind="x", now=0.0)
