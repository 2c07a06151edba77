"""Alembic's entry: runs the versions on the connection it was handed, in that connection's own transaction."""

from __future__ import annotations

from alembic import context

from tailwatch_service.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
