"""The application: a factory that wires the rooms together, starts their workers and stops them in order.

    request -> edge (id, headers, counters) -> problems -> route -> auth -> pipeline or storage

Nothing is opened at import or by the factory: the lifespan opens the database and starts the writer and the closer,
and on the way out ends the live streams first, so that nobody waits for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector
from starlette.concurrency import run_in_threadpool

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_dashboards.template import template
from tailwatch_service import exposition, problems
from tailwatch_service.alerts.desk import Desk
from tailwatch_service.api import (
    alerts,
    docs,
    health,
    live,
    pages,
    registry,
    runs,
    series,
    session,
    steps,
    translate,
    whatif,
)
from tailwatch_service.closing import Closer
from tailwatch_service.counters import Counters
from tailwatch_service.edge import Edge
from tailwatch_service.errors import SettingsError
from tailwatch_service.gate import Gate
from tailwatch_service.hub import Hub
from tailwatch_service.ingest import routes as ingest
from tailwatch_service.known_runs import KnownRuns
from tailwatch_service.pipeline import Pipeline
from tailwatch_service.recent import RecentSummaries
from tailwatch_service.services import Services
from tailwatch_service.settings import Settings
from tailwatch_service.storage import keys
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments
from tailwatch_service.storage.writer import Writer
from tailwatch_service.types import Event

API = "/api/v1"
"""Where the API lives."""

_logger = logging.getLogger("tailwatch")

_SLOW_START_S = 3.0
"""A start that takes longer says why."""


def create_app(settings: Settings, *, clock: Callable[[], float] = time.time) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: everything that can be set.
        clock: Unix seconds.
    """
    own_registry = CollectorRegistry()
    ProcessCollector(registry=own_registry)
    counters = Counters(own_registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = await run_in_threadpool(_open, settings, counters, clock)
        services.hub.open()
        app.state.services = services
        try:
            yield
        finally:
            services.hub.close()
            await run_in_threadpool(_close, services)

    app = FastAPI(
        title="Tailwatch",
        version="1",
        summary="Is this RL run still healthy, and if not, why?",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.registry = own_registry
    app.add_middleware(Edge, counters=counters)
    problems.install(app)
    for router in (
        ingest.router,
        runs.router,
        series.router,
        steps.router,
        whatif.router,
        live.router,
        registry.router,
        translate.router,
        alerts.router,
    ):
        app.include_router(router, prefix=API)
    app.include_router(session.router)
    app.include_router(session.router, prefix=API, include_in_schema=False)
    for router in (health.router, exposition.router, docs.router, alerts.runbooks, pages.router):
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def check_keys(db: Database, settings: Settings) -> None:
    """Refuse to answer others without a key.

    Raises:
        SettingsError: the address is not loopback, there is no key, and it was not said to be intended.
    """
    if settings.open_mode or keys.any_active(db):
        return
    raise SettingsError(
        f"{settings.host} can be reached by others and there is no API key: make one with `tailwatch keys create`, "
        "listen on 127.0.0.1, or accept the risk with --insecure"
    )


def _warm_up() -> None:
    """Load what libraries load lazily, before threads race for it.

    Where pandas is installed pyarrow imports it at its first conversion, and Plotly, looking for it meanwhile in
    another thread, fails on the half-imported module.
    """
    slow = threading.Timer(_SLOW_START_S, _logger.warning, ["compiling the statistics kernel, once: up to a minute"])
    slow.daemon = True
    slow.start()
    batch = Batch.from_arrays(BatchMeta(step=0), infer_logprobs=[[-1.0]], train_logprobs=[[-1.0]])
    summarise(wire.decode(wire.encode(batch)).batch)
    slow.cancel()
    template("light")


def _open(settings: Settings, counters: Counters, clock: Callable[[], float]) -> Services:
    """Open everything and start the workers."""
    _warm_up()
    db = Database.open(settings.database_url, data_dir=settings.data_dir)
    try:
        check_keys(db, settings)
    except SettingsError:
        db.close()
        raise
    if settings.insecure and not settings.loopback and not keys.any_active(db):
        _logger.warning("INSECURE: whoever reaches %s:%d may read and write everything", settings.host, settings.port)
    hub = Hub()
    writer = Writer(db, clock=clock)
    segments = Segments(settings.data_dir / "segments")
    desk = Desk.open(
        db,
        settings=settings,
        clock=clock,
        count=lambda name, outcome: counters.deliveries.labels(name, outcome).inc(),
    )

    def tell(event: Event) -> None:
        hub.wake(event.run_id)
        desk.wake()

    recent = RecentSummaries()
    closer = Closer(
        db,
        settings=settings,
        clock=clock,
        on_close=tell,
        segments=segments,
        judge=desk.judge,
        watch=desk.watch,
        recent=recent,
    )
    known = KnownRuns(db)
    pipeline = Pipeline(
        db,
        writer,
        segments=segments,
        settings=settings,
        clock=clock,
        wake=closer.wake,
        recent=recent,
        known=known,
    )
    writer.start()
    closer.start()
    desk.start()
    return Services(
        settings=settings,
        db=db,
        writer=writer,
        segments=segments,
        known=known,
        pipeline=pipeline,
        closer=closer,
        desk=desk,
        hub=hub,
        counters=counters,
        gate=Gate(db, settings=settings, clock=clock),
        pool=ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="tailwatch-ingest"),
        clock=clock,
    )


def _close(services: Services) -> None:
    """Stop in the order of the data's way, so that what was taken in is stored."""
    services.pool.shutdown()
    services.writer.close()
    services.closer.close()
    services.desk.close()
    services.db.close()


def _operation_id(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; every refusal is a problem, so the framework's own error schema is replaced by it."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
        )
        problem = {
            "description": "Refused or failed: RFC 9457.",
            "content": {problems.CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Problem"] = problems.SCHEMA
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "cookie": {"type": "apiKey", "in": "cookie", "name": "tailwatch_session"},
        }
        document["security"] = [{"bearer": []}, {"cookie": []}]
        for calls in document["paths"].values():
            for call in calls.values():
                answers = {code: answer for code, answer in call["responses"].items() if int(code) < 400}
                refusals = {code: problem for code in call["responses"] if int(code) >= 400}
                call["responses"] = {**answers, **refusals, "default": problem}
        app.openapi_schema = document
    return app.openapi_schema
