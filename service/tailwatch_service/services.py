"""Services: what the routes work with, one record per application, wired by `app` and handed out by `ServicesDep`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tailwatch_service.alerts.desk import Desk
from tailwatch_service.closing import Closer
from tailwatch_service.counters import Counters
from tailwatch_service.gate import Gate
from tailwatch_service.hub import Hub
from tailwatch_service.known_runs import KnownRuns
from tailwatch_service.pipeline import Pipeline
from tailwatch_service.settings import Settings
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments
from tailwatch_service.storage.writer import Writer


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """Everything a route may need. Made once the application starts."""

    settings: Settings
    db: Database
    writer: Writer
    segments: Segments
    known: KnownRuns
    pipeline: Pipeline
    closer: Closer
    desk: Desk
    """Rules, alerts and their couriers."""
    hub: Hub
    counters: Counters
    gate: Gate
    """Verifies who is asking."""
    pool: Executor
    """The few threads that decode and summarise."""
    clock: Callable[[], float]
    """Unix seconds."""


def services_of(request: Request) -> Services:
    """The services of the application that answers this request."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
"""The services, as a parameter of a route."""
