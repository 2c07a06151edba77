"""Database: the engine, and the two ways into it, `read` and `write`.

SQLite is the default: WAL, synchronous=FULL, so that a commit that returned survives a power cut. Its writers are
taken one at a time: a lock inside the process (fair, no polling), BEGIN IMMEDIATE between processes. PostgreSQL runs
the same statements. Never open `write` inside `write`: on SQLite the second would wait for the first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

BUSY_TIMEOUT_S = 30.0
"""How long a SQLite writer waits for one in another process."""

FILE_NAME = "tailwatch.db"
"""Name of the SQLite file in the data directory."""

_WRITES = "tailwatch_writes"


class Database:
    """One SQL database, migrated and ready. Thread-safe."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if engine.dialect.name == "sqlite" else contextlib.nullcontext()
        )

    @classmethod
    def open(cls, url: str | None, *, data_dir: Path) -> Database:
        """Open and migrate a database.

        Args:
            url: a SQLAlchemy URL; None: SQLite in `data_dir`, which is created.
            data_dir: the service's directory.
        """
        if url is None:
            data_dir.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{data_dir / FILE_NAME}"
        engine = sa.create_engine(
            url,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            pool_size=8,
            max_overflow=56,
            **({"connect_args": {"timeout": BUSY_TIMEOUT_S}} if url.startswith("sqlite") else {"pool_pre_ping": True}),
        )
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        database = cls(engine)
        database.migrate()
        return database

    def migrate(self) -> None:
        """Bring the schema to the newest version; several replicas may do it at once."""
        from tailwatch_service.storage import migrations

        with self.write() as connection:
            migrations.upgrade(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: one consistent view on SQLite."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that is durable once this block is left without an error."""
        with self._turn, self.engine.connect() as raw:
            connection = raw.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    def ready(self) -> bool:
        """True where the database answers."""
        try:
            with self.read() as connection:
                connection.execute(sa.text("SELECT 1"))
        except sa.exc.SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    key: Sequence[str],
    update: Sequence[str] | Callable[[Any], Mapping[str, Any]] = (),
) -> None:
    """Insert rows; where `key` exists already, update the stored row.

    Args:
        connection: an open write transaction.
        table: the table.
        rows: all with the same columns; no two with the same key.
        key: columns of the primary key or of a unique constraint.
        update: columns to overwrite, or a function from the row that was refused to the changes; empty: the stored
            row stays as it is.
    """
    if not rows:
        return
    statement: Any = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
    if not update:
        statement = statement.on_conflict_do_nothing(index_elements=key)
    else:
        refused = statement.excluded
        changes = update(refused) if callable(update) else {name: refused[name] for name in update}
        statement = statement.on_conflict_do_update(index_elements=key, set_=changes)
    connection.execute(statement, list(rows))


def larger(first: Any, second: Any) -> sa.ColumnElement[Any]:
    """The larger of two values: SQLite and PostgreSQL have different names for it."""
    return sa.case((first >= second, first), else_=second)


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling is switched off: BEGIN is ours, below.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16384"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
