"""The pages: run list, run, sign-in, definitions, the JSON they update from, and their static files.

Every page carries a content security policy without any inline script or style. What a page shows is read by
`page_data` in the thread pool.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from tailwatch_collectors.types import MAX_STEP
from tailwatch_dashboards import pages, plotlyjs
from tailwatch_dashboards.types import RunRow
from tailwatch_service import answers
from tailwatch_service.api import page_data, page_tokens
from tailwatch_service.api.stored import summary_or_reason
from tailwatch_service.auth import ReadableRun, Reader, visible_run
from tailwatch_service.errors import NotFound, Unauthorized
from tailwatch_service.gate import Principal
from tailwatch_service.services import Services, ServicesDep
from tailwatch_service.storage import runs

PAGE_SIZE = 50
"""Runs on one page of the list."""

MAX_SEARCHED = 500
"""Runs looked through for a search; older ones are found by paging."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""data: and blob: images are how Plotly turns a chart into a PNG."""

SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}

_GZIP_FROM = 4096
"""Bytes from which an answer is worth compressing."""

_YEAR = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)

Cursor = Annotated[str | None, Query(max_length=512)]
Search = Annotated[str, Query(max_length=200)]
Step = Annotated[int | None, Query(ge=0, le=MAX_STEP)]
Place = Annotated[int, Query(ge=0, le=MAX_STEP)]
Number = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/")
async def run_list(request: Request, services: ServicesDep, cursor: Cursor = None, q: Search = "") -> Response:
    """The run list."""
    visitor = await _visitor(request, services)
    if visitor is None:
        return _to_login(request)
    rows, following = await run_in_threadpool(_rows, services, visitor, cursor=cursor or None, search=q)
    origin, now = _origin(request, services), services.clock()
    return _html(request, pages.runs_page(rows, next_cursor=following, query=q, origin=origin, now=now))


@router.get("/view")
async def run_list_view(
    request: Request, services: ServicesDep, reader: Reader, cursor: Cursor = None, q: Search = ""
) -> Response:
    """What the run list updates from."""
    rows, following = await run_in_threadpool(_rows, services, reader, cursor=cursor or None, search=q)
    return _json(request, pages.runs_view(rows, next_cursor=following, now=services.clock()))


@router.get("/runs/{run_id}")
async def run_page(
    request: Request, services: ServicesDep, run_id: str, step: Annotated[str, Query()] = ""
) -> Response:
    """One run; a 404 page with a search where it does not exist. `step` is also read by the page's own
    script."""
    visitor = await _visitor(request, services)
    if visitor is None:
        return _to_login(request)
    chosen = int(step) if step.isdecimal() and len(step) <= _STEP_DIGITS else None
    try:
        page = await run_in_threadpool(_run_page, services, visitor, run_id, chosen, _origin(request, services))
    except NotFound:
        near, _ = await run_in_threadpool(_rows, services, visitor, cursor=None, search="", limit=5)
        return _html(request, pages.not_found_page(run_id=run_id, near=near), status=404)
    return _html(request, page)


@router.get("/runs/{run}/view")
def run_view(
    request: Request,
    services: ServicesDep,
    run: ReadableRun,
    step: Step = None,
    theme: Literal["light", "dark"] = "light",
    part: Literal["all", "step", "lag"] = "all",
) -> Response:
    """What the run page updates from: verdict, headline, figures, quality, events; `part=step` only what
    depends on the step, `part=lag` the figure that is read from many summaries."""
    view = page_data.run_view(services.db, run, step=step)
    if part == "lag":
        return _json(request, pages.lag_view(page_data.lag_table(services.db, run, view), view, theme=theme))
    if part == "step":
        return _json(request, pages.step_view(view, theme=theme))
    return _json(request, pages.run_view(view, theme=theme, now=services.clock()))


@router.get("/runs/{run}/what-if")
def what_if(
    request: Request,
    services: ServicesDep,
    run: ReadableRun,
    correction: Annotated[str, Query(max_length=64)],
    step: Step = None,
    lower: Number = None,
    upper: Number = None,
    budget: Number = None,
) -> Response:
    """What one correction would do to the chosen step, as the page shows it."""
    record = page_data.chosen_step(services.db, run, step)
    summary = summary_or_reason(record) if record else None
    made = page_tokens.correction(summary, correction, lower=lower, upper=upper, budget=budget)
    return _json(request, pages.what_if_view(made))


@router.get("/runs/{run}/sequence")
def sequence(
    request: Request,
    services: ServicesDep,
    run: ReadableRun,
    rank: Place,
    part: Place,
    row: Place,
    position: Place = 0,
    step: Step = None,
) -> Response:
    """A sequence of the chosen step coloured by d, as the page shows it."""
    record = page_data.chosen_step(services.db, run, step)
    if record is None:
        raise NotFound(f"run {run.run_id} has no closed step")
    where = {"rank": rank, "part": part, "row": row, "position": position}
    return _json(
        request, pages.sequence_view(page_tokens.sequence(services.db, services.segments, record.key, **where))
    )


@router.get("/runs/{run}/figures/{figure}.csv")
def figure_csv(services: ServicesDep, run: ReadableRun, figure: str, step: Step = None) -> Response:
    """The table behind a figure: every step of a series, or the bins of one step."""
    name = page_data.require_figure(figure)
    view = page_data.run_view(services.db, run, step=step, full=True)
    lags = page_data.lag_table(services.db, run, view).write_csv() if name == "staleness" else None
    text = pages.figure_csv(view, name) if lags is None else lags
    disposition = f'attachment; filename="tailwatch-{name}.csv"'
    return PlainTextResponse(text, media_type="text/csv", headers={"content-disposition": disposition})


@router.get("/login")
async def login(request: Request, next: Annotated[str, Query(max_length=1024)] = "/") -> Response:  # noqa: A002
    """The sign-in form."""
    inside = next.startswith("/") and not next.startswith(("//", "/\\"))
    return _html(request, pages.login_page(next_path=next if inside else "/"))


@router.get("/definitions")
async def definitions(request: Request) -> Response:
    """The metric registry, to read."""
    return _html(request, pages.definitions_page(list(page_data.metric_texts().values())))


@router.get("/static/plotly.min.js")
async def plotly_script(request: Request) -> Response:
    """plotly.js as the installed package ships it; the address carries its version, so it may be kept for a
    year."""
    headers = {"cache-control": _YEAR, "vary": "accept-encoding", "x-content-type-options": "nosniff"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["content-encoding"] = await run_in_threadpool(plotlyjs.script_gzip), "gzip"
    else:
        body = await run_in_threadpool(plotlyjs.script)
    return Response(body, media_type="text/javascript", headers=headers)


# Small files of ours: always revalidated (304 by ETag), so that an upgrade is seen at once.
router.mount("/static", StaticFiles(directory=pages.STATIC_DIR), name="static")

_STEP_DIGITS = 15


async def _visitor(request: Request, services: Services) -> Principal | None:
    """Who looks at a page; None where they must sign in first."""
    try:
        found = await services.gate.principal(request)
    except Unauthorized:
        return None
    return found if found.may("read") else None


def _to_login(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(wanted, safe='')}", status_code=303)


def _rows(
    services: Services, visitor: Principal, *, cursor: str | None, search: str, limit: int = PAGE_SIZE
) -> tuple[list[RunRow], str | None]:
    """One page of runs, newest first; with a search, the matches among the next MAX_SEARCHED runs."""
    words = search.lower().split()
    found: list[RunRow] = []
    for _ in range(MAX_SEARCHED // PAGE_SIZE if words else 1):
        page = runs.page(
            services.db,
            now=services.clock(),
            project=visitor.project,
            limit=limit,
            cursor=cursor,
            lost_after_s=services.settings.lost_after_s,
        )
        rows = [page_data.run_row(services.db, run) for run in page.runs]
        found += [row for row in rows if _matches(row, words)]
        cursor = page.next_cursor
        if cursor is None or len(found) >= limit:
            break
    return found, cursor


def _matches(row: RunRow, words: Sequence[str]) -> bool:
    text = " ".join(
        (
            row.name,
            row.project,
            row.verdict.state,
            row.activity,
            row.precision or "",
            row.framework or "",
            row.verdict.sentence,
        )
    ).lower()
    return all(word in text for word in words)


def _run_page(services: Services, visitor: Principal, run_id: str, step: int | None, origin: str) -> str:
    run = visible_run(services, visitor, run_id)
    view = page_data.run_view(services.db, run, step=step)
    return pages.run_page(view, origin=origin, now=services.clock())


def _origin(request: Request, services: Services) -> str:
    """Address of this service as a client would write it."""
    return (services.settings.public_url or f"{request.url.scheme}://{request.headers.get('host', '')}").rstrip("/")


def _html(request: Request, text: str, *, status: int = 200) -> Response:
    return _packed(request, HTMLResponse(text, status_code=status, headers=SECURITY_HEADERS))


def _json(request: Request, content: Any) -> Response:
    return _packed(request, answers.json(content, headers={"cache-control": "no-store"}))


def _packed(request: Request, response: Response) -> Response:
    """The response, compressed where it is large and the client reads gzip."""
    if len(response.body) >= _GZIP_FROM and "gzip" in request.headers.get("accept-encoding", ""):
        response.body = gzip.compress(bytes(response.body), compresslevel=3)
        response.headers["content-encoding"] = "gzip"
        response.headers["content-length"] = str(len(response.body))
    response.headers["vary"] = "accept-encoding"
    return response
