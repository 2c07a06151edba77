"""Problems: every refusal and failure as RFC 9457 problem+json, with the request's id and never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from tailwatch_collectors.errors import FieldError, WireError
from tailwatch_collectors.summary import SummaryError
from tailwatch_service.body import findings
from tailwatch_service.errors import TailwatchServiceError, Unauthorized, Unavailable, Unprocessable

CONTENT_TYPE = "application/problem+json"

MAX_ERRORS = 100
"""Most findings in one problem."""

SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail", "errors", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["reason"],
                "properties": {
                    "row": {"type": "integer"},
                    "column": {"type": "string"},
                    "reason": {"type": "string"},
                },
            },
        },
        "request_id": {"type": "string"},
    },
}
"""JSON Schema of a problem."""

_logger = logging.getLogger("tailwatch.http")


def render(
    *,
    status: int,
    title: str,
    detail: str,
    request_id: str,
    errors: tuple[FieldError, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response."""
    problem = {
        "type": f"urn:tailwatch:problem:{title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail[:2000],
        "errors": [
            {key: value for key, value in asdict(error).items() if value is not None} for error in errors[:MAX_ERRORS]
        ],
        "request_id": request_id,
    }
    return Response(orjson.dumps(problem), status_code=status, headers=dict(headers or {}), media_type=CONTENT_TYPE)


def internal(request_id: str) -> Response:
    """The answer to an error of ours: says only under which id the log has it."""
    detail = "Something went wrong in the service; its log has the details under this request_id."
    return render(status=500, title="Internal error", detail=detail, request_id=request_id)


def install(app: FastAPI) -> None:
    """Turn what routes raise into problems."""
    ours = (TailwatchServiceError, WireError, SummaryError, RequestValidationError, HTTPException)
    for kind in (*ours, OperationalError):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    """The one place where an error becomes an answer."""
    if isinstance(error, HTTPException):
        return _framework(request, error)
    known = _as_ours(error)
    if known.status >= 500:
        _logger.error("%s %s: %s [%s]", request.method, request.url.path, error, request_id(request))
    if isinstance(known, Unauthorized) and _is_page(request):
        return Response(status_code=303, headers={"Location": f"/login?next={quote(request.url.path)}"})
    return render(
        status=known.status,
        title=known.title,
        detail=str(known),
        errors=known.errors,
        request_id=request_id(request),
        headers=known.headers,
    )


def _as_ours(error: Exception) -> TailwatchServiceError:
    if isinstance(error, TailwatchServiceError):
        return error
    if isinstance(error, WireError | SummaryError):
        return Unprocessable(str(error), *error.errors)
    if isinstance(error, RequestValidationError):
        return Unprocessable.of(*findings(error.errors()))
    if isinstance(error, OperationalError):
        return Unavailable("the database does not answer at the moment")
    raise error


def _framework(request: Request, error: HTTPException) -> Response:
    """What the router itself refuses: no such path, no such method."""
    what = {404: f"{request.url.path!r:.200} does not exist", 405: f"{request.method} is not answered here"}
    return render(
        status=error.status_code,
        title=HTTPStatus(error.status_code).phrase,
        detail=what.get(error.status_code, str(error.detail)),
        request_id=request_id(request),
        headers=error.headers,
    )


def request_id(request: Request) -> str:
    """The id that the edge gave this request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def _is_page(request: Request) -> bool:
    wants_html = "text/html" in request.headers.get("accept", "")
    return request.method == "GET" and wants_html and not request.url.path.startswith("/api/")
