"""The edge: what happens to every request, whatever route it is for.

Gives it an id, sets the security headers, counts it, and turns an error that nobody expected into a 500 without a
trace. Plain ASGI: a middleware that wraps the response object would break streaming.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailwatch_service import problems
from tailwatch_service.counters import Counters

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'"
)
"""Nothing from elsewhere, nothing inline; plotly draws its PNG through blob: and data: images."""

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_logger = logging.getLogger("tailwatch.http")


class Edge:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, *, counters: Counters, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app = app
        self._counters = counters
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        streamed = False
        started = self._clock()

        async def dressed(message: Message) -> None:
            nonlocal status, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                streamed = headers.get("content-type", "").startswith("text/event-stream")
                headers["X-Request-ID"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, dressed)
        except Exception:
            _logger.exception("%s %s failed [%s]", scope["method"], scope["path"], request_id)
            if status:  # the answer is on its way: all that is left is to break it off
                raise
            await problems.internal(request_id)(scope, receive, dressed)
        finally:
            self._count(scope, status, None if streamed else self._clock() - started)

    def _count(self, scope: Scope, status: int, seconds: float | None) -> None:
        route: Any = scope.get("route")
        template = getattr(route, "path", "") or "unknown"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._counters.requests.labels(method, template, str(status)).inc()
        if seconds is not None:
            self._counters.request_seconds.labels(template).observe(seconds)
