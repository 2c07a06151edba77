"""Evidence: what is frozen when an alert fires, so that it outlives retention and later revisions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from tailwatch_collectors import summary as summaries
from tailwatch_service.statistics.worst import worst_tokens
from tailwatch_service.storage import schema

STEPS_BEFORE = 10
"""Steps kept with their metrics, the one that fired included."""

WORST = 16
"""Worst tokens kept."""

_DESCRIBED = (
    "framework", "model_class", "precision", "temperature", "top_p", "logprobs_mode", "world_size", "staleness_bound",
    "config",
)  # fmt: skip


def freeze(
    connection: sa.Connection, *, run_id: str, series_id: int | None, step: int | None, summary: bytes
) -> dict[str, Any]:
    """The evidence of a step, read inside the transaction that closes it.

    Args:
        connection: the transaction.
        run_id: the run.
        series_id: the series that was judged; None: the run as a whole.
        step: the step that fired.
        summary: its merged summary; empty where there is none.
    """
    runs = schema.runs
    row = connection.execute(sa.select(runs).where(runs.c.run_id == run_id)).one()
    return {
        "run": {name: row._mapping[name] for name in _DESCRIBED},
        "steps": [] if series_id is None or step is None else _steps(connection, series_id, step),
        "worst_tokens": _worst(summary) if summary else [],
    }


def _steps(connection: sa.Connection, series_id: int, step: int) -> list[dict[str, Any]]:
    table = schema.steps
    columns = (table.c.step, table.c.coverage, table.c.tokens, table.c.metrics)
    here = sa.and_(table.c.series_id == series_id, table.c.step <= step, table.c.closed.is_(sa.true()))
    rows = connection.execute(sa.select(*columns).where(here).order_by(table.c.step.desc()).limit(STEPS_BEFORE)).all()
    # Column names are a kind of str that JSON writers refuse.
    return [{str(name): value for name, value in row._mapping.items()} for row in reversed(rows)]


def _worst(summary: bytes) -> list[dict[str, Any]]:
    return [asdict(token) for token in worst_tokens(summaries.from_bytes(summary))[:WORST]]
