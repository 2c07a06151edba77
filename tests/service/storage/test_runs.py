from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from tailwatch_service.errors import KeyConflict, NotFound, Unprocessable
from tailwatch_service.storage import events, runs, schema
from tailwatch_service.storage.database import Database
from tailwatch_service.types import NewBatch, RunSpec

SPEC = RunSpec(project="math", name="grpo-7b")


def test_register_creates_once_and_updates_what_is_said(db: Database) -> None:
    first = runs.register(db, RunSpec(project="math", name="a", world_size=8, tags={"x": "1"}), now=1.0)
    again = runs.register(db, RunSpec(project="math", name="a", framework="trl"), now=2.0)
    assert (first.created, again.created) == (True, False)
    assert again.run.run_id == first.run.run_id
    assert again.run.spec == RunSpec(project="math", name="a", world_size=8, tags={"x": "1"}, framework="trl")
    assert (again.run.created_at, again.run.updated_at) == (1.0, 2.0)
    assert runs.register(db, RunSpec(project="other", name="a"), now=3.0).created


def test_run_ids_are_opaque_and_url_safe(db: Database) -> None:
    run_id = runs.register(db, SPEC, now=0.0).run.run_id
    assert len(run_id) == 16
    assert set(run_id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_sessions_map_to_attempts(db: Database) -> None:
    first = runs.register(db, SPEC, now=0.0, session="launch-0")
    run_id = first.run.run_id
    assert first.attempt == 1
    assert runs.register(db, SPEC, now=1.0, session="launch-1").attempt == 2
    assert runs.register(db, SPEC, now=2.0, session="launch-0").attempt == 1
    assert runs.attempt_of(db, run_id, now=3.0, session="launch-1") == 2
    assert runs.attempt_of(db, run_id, now=3.0) == 2
    assert runs.attempt_of(db, run_id, now=3.0, session="launch-2") == 3
    assert runs.attempt_of(db, run_id, now=3.0, attempt=2, session="launch-0") == 2
    assert [event.kind for event in events.after(db, run_id, seq=0)] == ["run_created"] + ["attempt_started"] * 3


def test_resume_without_a_session_starts_the_next_attempt(db: Database) -> None:
    assert runs.register(db, SPEC, now=0.0, resume=True).attempt == 1
    assert runs.register(db, SPEC, now=1.0).attempt == 1
    assert runs.register(db, SPEC, now=2.0, resume=True).attempt == 2
    assert runs.register(db, SPEC, now=3.0).attempt == 2


def test_a_session_takes_an_attempt_nobody_used(
    db: Database, run_id: str, new_batch: Callable[..., NewBatch], store: Callable[..., list[Any]]
) -> None:
    assert runs.attempt_of(db, run_id, now=0.0, session="first") == 1
    runs.register(db, RunSpec(project="math", name="grpo"), now=1.0, resume=True)
    store(new_batch(attempt=2))
    assert runs.attempt_of(db, run_id, now=2.0, session="second") == 3


def test_an_attempt_that_does_not_exist_is_named(db: Database, run_id: str) -> None:
    assert runs.attempt_of(db, run_id, now=0.0, attempt=1) == 1
    with pytest.raises(Unprocessable, match="attempt: 7 does not exist, the latest attempt of this run is 1") as caught:
        runs.attempt_of(db, run_id, now=0.0, attempt=7)
    assert caught.value.errors[0].column == "attempt"
    with pytest.raises(NotFound, match="nowhere"):
        runs.attempt_of(db, "nowhere", now=0.0)


@pytest.mark.parametrize("how", ["register", "attempt_of"])
def test_eight_resuming_ranks_make_one_attempt(db: Database, how: str) -> None:
    run_id = runs.register(db, SPEC, now=0.0, session="before").run.run_id
    start = threading.Barrier(8)
    got: list[int] = []

    def resume() -> None:
        start.wait()
        if how == "register":
            got.append(runs.register(db, SPEC, now=1.0, session="after").attempt)
        else:
            got.append(runs.attempt_of(db, run_id, now=1.0, session="after"))

    threads = [threading.Thread(target=resume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [2] * 8
    assert runs.get(db, run_id, now=1.0).attempt == 2


def test_eight_ranks_create_one_run(db: Database) -> None:
    start = threading.Barrier(8)
    got: list[runs.Registered] = []

    def connect() -> None:
        start.wait()
        got.append(runs.register(db, SPEC, now=1.0, session="launch"))

    threads = [threading.Thread(target=connect) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({each.run.run_id for each in got}) == 1
    assert [each.attempt for each in got] == [1] * 8
    assert sum(each.created for each in got) == 1
    assert [event.seq for event in events.after(db, got[0].run.run_id, seq=0)] == [1, 2]


def test_state_is_computed_from_what_was_heard(db: Database) -> None:
    run_id = runs.register(db, SPEC, now=0.0).run.run_id
    assert runs.get(db, run_id, now=300.0).state == "running"
    assert runs.get(db, run_id, now=300.1).state == "lost"
    assert runs.get(db, run_id, now=11.0, lost_after_s=10.0).state == "lost"
    events.append(db, run_id, kind="finished", now=20.0)
    assert runs.get(db, run_id, now=9999.0).state == "finished"
    runs.register(db, SPEC, now=30.0, session="again")
    assert runs.get(db, run_id, now=31.0).state == "finished"  # the session took the attempt nobody used
    runs.register(db, SPEC, now=32.0, session="once more")
    assert runs.get(db, run_id, now=33.0).state == "running"


def test_states_are_announced_once(db: Database) -> None:
    run_id = runs.register(db, SPEC, now=0.0).run.run_id
    assert runs.announce_states(db, now=100.0) == []
    assert runs.announce_states(db, now=400.0) == [run_id]
    assert runs.announce_states(db, now=401.0) == []
    runs.register(db, SPEC, now=500.0)
    assert runs.announce_states(db, now=501.0) == [run_id]
    events.append(db, run_id, kind="finished", now=502.0)
    assert runs.announce_states(db, now=503.0) == [run_id]
    changed = [e.payload["state"] for e in events.last(db, run_id, kinds=("state_changed",))]
    assert changed == ["lost", "running", "finished"]


def test_pages_list_every_run_once(db: Database) -> None:
    for number in range(5):
        runs.register(db, RunSpec(project="p", name=f"r{number}"), now=float(number // 2))
    names: list[str] = []
    cursor: str | None = None
    while True:
        page = runs.page(db, now=9.0, project="p", limit=2, cursor=cursor)
        names += [run.spec.name for run in page.runs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(names) == [f"r{number}" for number in range(5)]
    assert names[0] == "r4"
    assert (runs.count(db), runs.count(db, project="q")) == (5, 0)
    with pytest.raises(Unprocessable, match="is not a cursor"):
        runs.page(db, now=9.0, cursor="bm9uc2Vuc2U=")


def test_update_renames_and_archives(db: Database) -> None:
    run_id = runs.register(db, SPEC, now=0.0).run.run_id
    runs.register(db, RunSpec(project="math", name="taken"), now=0.0)
    run = runs.update(db, run_id, changes={"name": "new", "archived": True, "tags": {"a": "b"}}, now=1.0)
    assert (run.spec.name, run.archived, run.spec.tags) == ("new", True, {"a": "b"})
    assert [r.spec.name for r in runs.page(db, now=1.0).runs] == ["taken"]
    assert len(runs.page(db, now=1.0, archived=True).runs) == 2
    assert not runs.update(db, run_id, changes={"archived": False}, now=2.0).archived
    with pytest.raises(KeyConflict, match="'taken'"):
        runs.update(db, run_id, changes={"name": "taken"}, now=3.0)
    with pytest.raises(Unprocessable, match="run_id: cannot be changed"):
        runs.update(db, run_id, changes={"run_id": "x"}, now=3.0)
    with pytest.raises(NotFound):
        runs.update(db, "nowhere", changes={"name": "x"}, now=3.0)
    found = runs.find(db, project="math", name="new", now=3.0)
    assert found is not None
    assert found.run_id == run_id
    assert runs.find(db, project="math", name="old", now=3.0) is None


def test_delete_takes_everything_with_it(
    db: Database, run_id: str, new_batch: Callable[..., NewBatch], store: Callable[..., list[Any]]
) -> None:
    store(new_batch(idempotency_key="k"))
    runs.delete(db, run_id)
    for table in schema.metadata.sorted_tables:
        with db.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0, table.name
    with pytest.raises(NotFound):
        runs.delete(db, run_id)
    with pytest.raises(NotFound):
        runs.get(db, run_id, now=0.0)
