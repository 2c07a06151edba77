from __future__ import annotations

import pytest

from tailwatch_service.errors import NotFound
from tailwatch_service.storage import heartbeats, runs
from tailwatch_service.storage.database import Database


def test_the_last_heartbeat_of_each_rank_is_kept(db: Database, run_id: str) -> None:
    heartbeats.beat(db, run_id, attempt=1, rank=1, now=10.0, step=3)
    heartbeats.beat(db, run_id, attempt=1, rank=0, now=11.0, payload={"dropped": 2})
    heartbeats.beat(db, run_id, attempt=1, rank=1, now=12.0, step=4)
    found = heartbeats.of_run(db, run_id, attempt=1)
    assert [(beat.rank, beat.at, beat.step) for beat in found] == [(0, 11.0, None), (1, 12.0, 4)]
    assert found[0].payload == {"dropped": 2}
    assert heartbeats.of_run(db, run_id, attempt=2) == []
    assert runs.get(db, run_id, now=12.0).last_seen_at == 12.0


def test_an_unknown_run_has_no_heartbeat(db: Database) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        heartbeats.beat(db, "nowhere", attempt=1, rank=0, now=0.0)
