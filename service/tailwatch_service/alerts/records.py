"""Records: what follows from an alert's advance, written in one transaction: its row, an event, the outbox."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from tailwatch_service.alerts import messages
from tailwatch_service.alerts.lifecycle import Advance, Happening, advance
from tailwatch_service.alerts.links import Links
from tailwatch_service.storage import alerts, events, outbox, schema
from tailwatch_service.storage.alerts import Placed
from tailwatch_service.types import Alert, Event


class Place(NamedTuple):
    """Where and when something happens."""

    run_id: str
    project: str
    run: str
    """Name of the run."""
    now: float
    step: int | None = None
    attempt: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scribe:
    """Writes alerts down, for whoever decides about them."""

    links: Links
    destinations: tuple[str, ...]
    """Names of the destinations that are configured."""

    def happen(
        self,
        connection: sa.Connection,
        before: Alert | None,
        happening: Happening,
        *,
        at: Place,
    ) -> Event | None:
        """Advance an alert and write down what follows, inside the caller's write transaction; its event, if any.

        Raises:
            InvalidTransition: its state does not allow it.
        """
        after = advance(before, happening)
        if after.alert is None:
            if before is not None:
                alerts.drop(connection, before.alert_id)
            return None
        if after.alert != before:
            alerts.put(connection, after.alert)
        if after.notice is not None:
            self._tell(connection, before, after.alert, after.notice, at=at)
        return _log(connection, after, at=at)

    def _tell(
        self,
        connection: sa.Connection,
        before: Alert | None,
        alert: Alert,
        notice: str,
        *,
        at: Place,
    ) -> None:
        worse = before is not None and before.notified and before.severity != alert.severity
        superseded = before.severity if before is not None and worse else None
        sent = messages.payload(Placed(alert, at.project, at.run), self.links, superseded=superseded)
        outbox.insert(
            connection,
            destinations=self.destinations,
            notice=notice,
            payload=sent,
            now=at.now,
            alert_id=alert.alert_id,
        )


def new_id() -> str:
    """An id for a new alert: opaque and URL-safe."""
    return secrets.token_urlsafe(12)


def place_of(connection: sa.Connection, run_id: str, *, now: float, **where: int | None) -> Place:
    """A place in a run whose names are looked up."""
    runs = schema.runs
    row = connection.execute(sa.select(runs.c.project, runs.c.name).where(runs.c.run_id == run_id)).one()
    return Place(run_id, row.project, row.name, now, **where)


def _log(connection: sa.Connection, after: Advance, *, at: Place) -> Event | None:
    alert = after.alert
    if alert is None or after.event is None:
        return None
    payload = {
        "alert_id": alert.alert_id,
        "rule": alert.rule,
        "slice": alert.slice,
        "severity": alert.severity,
        "state": alert.state,
        "summary": alert.summary,
    }
    return events.insert(
        connection, alert.run_id, kind=after.event, now=at.now, step=at.step, attempt=at.attempt, payload=payload
    )
