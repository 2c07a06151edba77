from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database, larger, upsert
from tailwatch_service.types import ApiKey


def _row(run_id: str, at: float = 1.0) -> dict[str, object]:
    times = {"created_at": at, "updated_at": at, "last_seen_at": at}
    fixed = {"attempt": 1, "announced_state": "running", "last_event_seq": 0}
    return {"run_id": run_id, "project": "p", "name": run_id, **times, **fixed}


def test_sqlite_commits_are_durable_and_logged_ahead(db: Database) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("pragmas are SQLite's")
    with db.read() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]


def test_a_failed_block_leaves_nothing(db: Database) -> None:
    def fail() -> None:
        with db.write() as connection:
            connection.execute(sa.insert(schema.runs).values(_row("a")))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.runs)).scalar() == 0


def test_a_reader_keeps_its_view_while_a_writer_commits(db: Database) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads each statement's own snapshot")
    count = sa.select(sa.func.count()).select_from(schema.runs)
    with db.read() as reader:
        assert reader.execute(count).scalar() == 0
        with db.write() as writer:
            writer.execute(sa.insert(schema.runs).values(_row("a")))
        assert reader.execute(count).scalar() == 0
    with db.read() as reader:
        assert reader.execute(count).scalar() == 1


def test_writers_of_two_instances_wait_for_each_other(tmp_path: Path) -> None:
    first = Database.open(None, data_dir=tmp_path)
    second = Database.open(None, data_dir=tmp_path)
    with first.write() as connection:
        connection.execute(sa.insert(schema.runs).values(_row("a")))
    following = schema.runs.c.last_event_seq + 1

    def count(db: Database) -> None:
        for _ in range(20):
            with db.write() as connection:
                connection.execute(sa.update(schema.runs).values(last_event_seq=following))

    threads = [threading.Thread(target=count, args=(db,)) for db in (first, second, first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with second.read() as connection:
        assert connection.execute(sa.select(schema.runs.c.last_event_seq)).scalar() == 80
    first.close()
    second.close()


def test_upsert_overwrites_keeps_or_computes(db: Database) -> None:
    table = schema.runs
    with db.write() as connection:
        upsert(connection, table, [_row("a", 5.0)], key=["run_id"])
        upsert(connection, table, [_row("a", 9.0)], key=["run_id"])
        assert connection.execute(sa.select(table.c.created_at)).scalar() == 5.0
        upsert(connection, table, [_row("a", 3.0)], key=["run_id"], update=["created_at"])
        upsert(
            connection,
            table,
            [_row("a", 4.0)],
            key=["run_id"],
            update=lambda new: {"updated_at": larger(table.c.updated_at, new.updated_at)},
        )
        row = connection.execute(sa.select(table.c.created_at, table.c.updated_at)).one()
    assert tuple(row) == (3.0, 5.0)


def test_ready_tells_whether_it_answers(tmp_path: Path, db: Database) -> None:
    assert db.ready()
    broken = Database(sa.create_engine(f"sqlite:///{tmp_path}/no/such/folder/x.db"))
    assert not broken.ready()


def test_records_of_the_leaf_match_their_tables() -> None:
    assert set(ApiKey.__dataclass_fields__) < set(schema.api_keys.c.keys())
