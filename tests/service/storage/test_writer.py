from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from tailwatch_service.errors import KeyConflict, NotFound, Unavailable
from tailwatch_service.storage import batches, schema
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.writer import Writer
from tailwatch_service.types import NewBatch

Make = Callable[..., NewBatch]

one_writer = pytest.mark.skipif(
    "TAILWATCH_TEST_DATABASE_URL" in os.environ, reason="holds back the writer with SQLite's one write transaction"
)


@pytest.fixture
def writer(db: Database) -> Iterator[Writer]:
    made = Writer(db)
    made.start()
    yield made
    made.close()


def _stored(db: Database) -> set[str]:
    with db.read() as connection:
        return set(connection.execute(sa.select(schema.batches.c.batch_id)).scalars())


def test_a_result_is_durable(db: Database, writer: Writer, new_batch: Make) -> None:
    outcome = writer.submit(new_batch()).result(30)
    assert outcome.status == "stored"
    assert _stored(db) == {outcome.batch_id}
    assert writer.submit(new_batch()).result(30).status == "duplicate"


def test_refusals_are_raised(writer: Writer, new_batch: Make) -> None:
    writer.submit(new_batch()).result(30)
    with pytest.raises(KeyConflict, match="is stored as batch"):
        writer.submit(new_batch(seed=1)).result(30)
    with pytest.raises(NotFound, match="nowhere"):
        writer.submit(new_batch(run="nowhere")).result(30)


@one_writer
def test_nothing_is_acknowledged_before_the_commit(db: Database, writer: Writer, new_batch: Make) -> None:
    with db.write():
        future = writer.submit(new_batch())
        time.sleep(0.1)
        assert not future.done()
    assert future.result(30).status == "stored"


@one_writer
def test_waiting_batches_share_a_commit(
    db: Database, writer: Writer, new_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    store = batches.store

    def counting(connection: sa.Connection, group: list[NewBatch], *, now: float) -> object:
        sizes.append(len(group))
        return store(connection, group, now=now)

    monkeypatch.setattr(batches, "store", counting)
    with db.write():
        futures = [writer.submit(new_batch(step=0))]
        while writer.waiting():  # the writer has taken the first and waits for its turn
            time.sleep(0.001)
        futures += [writer.submit(new_batch(step=step)) for step in range(1, 41)]
    assert [future.result(30).status for future in futures] == ["stored"] * 41
    assert sizes == [1, 32, 8]


@one_writer
def test_a_poisoned_batch_fails_alone(
    db: Database, writer: Writer, new_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = batches.store

    def failing(connection: sa.Connection, group: list[NewBatch], *, now: float) -> object:
        answers = store(connection, group, now=now)
        if any(batch.key.rank == 13 for batch in group):
            raise ZeroDivisionError("poison")
        return answers

    monkeypatch.setattr(batches, "store", failing)
    with db.write():
        futures = [writer.submit(new_batch(rank=rank)) for rank in (99, 12, 13, 14)]
    assert [future.result(30).status for future in (futures[0], futures[1], futures[3])] == ["stored"] * 3
    with pytest.raises(ZeroDivisionError, match="poison"):
        futures[2].result(30)
    assert len(_stored(db)) == 3


def test_a_key_that_another_replica_stores_meanwhile_is_a_duplicate(
    db: Database, writer: Writer, new_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = batches.store
    raced: list[int] = []

    def racing(connection: sa.Connection, group: list[NewBatch], *, now: float) -> object:
        if not raced:
            raced.append(1)
            store(connection, group, now=now)
            connection.commit()
            raise sa.exc.IntegrityError("INSERT", {}, Exception("duplicate key"))
        return store(connection, group, now=now)

    monkeypatch.setattr(batches, "store", racing)
    assert writer.submit(new_batch()).result(30).status == "duplicate"


def test_a_database_that_cannot_be_written_asks_the_client_to_come_back(
    writer: Writer, new_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: object, **_options: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk full"))

    monkeypatch.setattr(batches, "store", failing)
    with pytest.raises(Unavailable, match="cannot be written") as caught:
        writer.submit(new_batch()).result(30)
    assert caught.value.headers == {"Retry-After": "1"}


def test_a_full_queue_refuses(db: Database, new_batch: Make) -> None:
    writer = Writer(db, capacity=2)
    kept = [writer.submit(new_batch(step=step)) for step in range(2)]
    with pytest.raises(Unavailable, match="2 batches are waiting, the limit"):
        writer.submit(new_batch(step=2))
    writer.start()
    assert [future.result(30).status for future in kept] == ["stored"] * 2
    writer.close()


def test_closing_commits_what_waits_and_refuses_the_rest(db: Database, new_batch: Make) -> None:
    writer = Writer(db)
    futures = [writer.submit(new_batch(step=step)) for step in range(50)]
    writer.start()
    writer.close()
    writer.close()
    assert {future.result(0).batch_id for future in futures} == _stored(db)
    with pytest.raises(Unavailable, match="stopping"):
        writer.submit(new_batch(step=99))


def test_concurrent_senders_store_every_key_once(db: Database, new_batch: Make) -> None:
    writers = [Writer(db), Writer(db)]
    for writer in writers:
        writer.start()
    group = [new_batch(step=step, rank=rank) for step in range(10) for rank in range(4)]
    start = threading.Barrier(4)

    def send(worker: int) -> list[str]:
        start.wait()
        turned = group[worker * 7 :] + group[: worker * 7]
        futures = [writers[worker % 2].submit(batch) for batch in turned]
        return [future.result(60).status for future in futures]

    with ThreadPoolExecutor(4) as pool:
        answers = [status for statuses in pool.map(send, range(4)) for status in statuses]
    assert (answers.count("stored"), answers.count("duplicate")) == (40, 120)
    assert len(_stored(db)) == 40
    with db.read() as connection:
        counts = connection.execute(sa.select(schema.steps.c.batch_count)).scalars().all()
    assert counts == [4] * 10
    for writer in writers:
        writer.close()
