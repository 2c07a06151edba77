"""Limits that need the database: how many scalars a run may have, how large a free-form record may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from tailwatch_collectors.errors import FieldError
from tailwatch_service.errors import Unprocessable
from tailwatch_service.settings import Limits
from tailwatch_service.storage import scalars
from tailwatch_service.storage.database import Database

PAYLOAD_BYTES = 64 * 2**10
"""Largest payload of an event or heartbeat, as JSON."""


def check_scalars(db: Database, run_id: str, *, names: Iterable[str], limits: Limits) -> None:
    """Refuse names beyond the number of series a run may have.

    Raises:
        Unprocessable: with the limit, and how many names there are.
    """
    known = set(scalars.names(db, run_id))
    new = set(names) - known
    if new and len(known) + len(new) > limits.series_per_run:
        reason = f"{len(known)} series and {len(new)} new ones exceed the limit of {limits.series_per_run} per run"
        raise Unprocessable.of(FieldError(column="values", reason=reason))


def check_payload(payload: Any, *, column: str) -> None:
    """Refuse a record that is too large to be kept.

    Raises:
        Unprocessable: with its size and the limit.
    """
    size = len(orjson.dumps(payload))
    if size > PAYLOAD_BYTES:
        raise Unprocessable.of(FieldError(column=column, reason=f"is {size} bytes as JSON, limit {PAYLOAD_BYTES}"))
