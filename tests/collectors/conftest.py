"""A service in a thread that behaves, or misbehaves on command, and a clean environment for every test."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tailwatch_collectors import breaker, wire
from tailwatch_collectors.batch import Batch

HANG_BOUND = 60.0
"""What any wait in these tests may take at most, seconds: far above what is expected."""

Key = tuple[int, str, int, str, int, int]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the service does with one request instead of behaving."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    hang: bool = False
    lose_answer: bool = False
    """Does what it should, then hangs up without an answer."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests: no traceback for them."""


def _route(path: str) -> str:
    """The last segment of a path, without its query."""
    return path.partition("?")[0].rsplit("/", 1)[-1]


class FakeService:
    """What the SDK needs of the service, on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.batches: dict[Key, Batch] = {}
        self.runs = 0
        self.answer_more: dict[str, Any] = {}
        self.release = threading.Event()
        self._scripts: dict[str, deque[Reply]] = {}
        self._always: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def script(self, route: str, *, times: int = 1, **reply: Any) -> None:
        """Answer the next requests of a route (its last path segment) like this."""
        self._scripts.setdefault(route, deque()).extend([Reply(**reply)] * times)

    def always(self, route: str, **reply: Any) -> None:
        """Answer every request of a route like this, until `behave`."""
        self._always[route] = Reply(**reply)

    def behave(self) -> None:
        """Forget all commands."""
        self._scripts.clear()
        self._always.clear()

    def of(self, route: str) -> list[Call]:
        """The calls of one route, in order."""
        return [call for call in list(self.calls) if _route(call.path) == route]

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(HANG_BOUND)

    def _answer(self, route: str, body: bytes) -> dict[str, Any]:
        if route == "runs":
            self.runs += 1
            return {"run_id": f"run-{self.runs}", "attempt": 1, **self.answer_more}
        if route == "summaries":
            return {"status": "stored", **self.answer_more}
        if route != "batches":
            return {}
        batch = wire.decode(body).batch
        meta = batch.meta
        key = (meta.step, meta.phase, meta.update_index, meta.stream, meta.rank, meta.part)
        known = key in self.batches
        self.batches.setdefault(key, batch)
        return {"status": "duplicate" if known else "stored", **self.answer_more}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one write per answer: two would wait for each other's acknowledgement

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is inherited
                return

            def do_POST(self) -> None:  # the name is inherited
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service._serve(self, body)

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        route = _route(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.calls.append(Call(path=handler.path, headers=headers, body=body))
            script = self._scripts.get(route)
            reply = script.popleft() if script else self._always.get(route)
            plain = reply is None or reply.lose_answer or (reply.body is None and reply.status == 200)
            content = self._answer(route, body) if plain and not (reply and reply.hang) else {}
        reply = reply or Reply()
        if reply.hang:
            self.release.wait(HANG_BOUND)
        if reply.delay:
            time.sleep(reply.delay)
        if reply.lose_answer or reply.hang:
            handler.close_connection = True
            return
        out = json.dumps(content).encode() if reply.body is None else reply.body
        try:
            handler.send_response(reply.status)
            handler.send_header("Content-Type", reply.content_type)
            handler.send_header("Content-Length", str(len(out)))
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(out)
        except OSError:
            # The client has had enough of us, which is what some tests are about.
            handler.close_connection = True


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.close()


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine that runs the tests gets in."""
    for name in list(os.environ):
        if name.startswith(("TAILWATCH_", "SLURM_", "TORCHELASTIC_")) or name in {"RANK", "WORLD_SIZE"}:
            monkeypatch.delenv(name)
    # No home, no spool by default: tests of it name a directory of their own. SIGTERM is pytest's.
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TAILWATCH_SIGTERM_TIMEOUT", "0")


@pytest.fixture
def swallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are swallowed as in training."""
    monkeypatch.setenv("TAILWATCH_SWALLOW", "1")


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow each other at once."""
    monkeypatch.setattr(breaker, "FIRST_BACKOFF", 0.002)
    monkeypatch.setattr(breaker, "LAST_BACKOFF", 0.01)


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something is so; fails when it never is."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + HANG_BOUND
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.005)

    return wait
