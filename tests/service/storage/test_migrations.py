from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tailwatch_service.storage import migrations, schema
from tailwatch_service.storage.database import Database


def test_the_migrated_schema_is_the_one_in_the_code(db: Database) -> None:
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_partial_indexes_and_clustered_tables_survive_the_migration(tmp_path: Path) -> None:
    migrated = Database.open(None, data_dir=tmp_path)
    made = sa.create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    schema.metadata.create_all(made)

    def statements(engine: sa.Engine) -> set[str]:
        with engine.connect() as connection:
            query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'alembic%'"
            texts = connection.exec_driver_sql(query).scalars()
            return {" ".join(text.split()) for text in texts}

    indexes = {text for text in statements(made) if "INDEX" in text}
    assert any("WHERE pending IS 1" in text for text in indexes)
    assert {text for text in statements(migrated.engine) if "INDEX" in text} == indexes
    clustered = [sum("WITHOUT ROWID" in text for text in statements(engine)) for engine in (made, migrated.engine)]
    assert clustered == [8, 8]
    made.dispose()
    migrated.close()


def test_opening_twice_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        db = Database.open(None, data_dir=tmp_path)
        with db.read() as connection:
            heads = MigrationContext.configure(connection).get_current_heads()
        db.close()
    with db.read() as connection:
        script = ScriptDirectory.from_config(migrations.config(connection))
    db.close()
    assert heads == tuple(script.get_heads()) == ("0002",)


def test_every_migration_can_be_undone(tmp_path: Path) -> None:
    from alembic import command

    db = Database.open(None, data_dir=tmp_path)
    with db.write() as connection:
        command.downgrade(migrations.config(connection), "base")
    assert set(sa.inspect(db.engine).get_table_names()) == {"alembic_version"}
    db.close()
