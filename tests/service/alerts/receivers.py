"""Receivers on loopback that behave, and some that do not."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    """What arrived."""

    url: str
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def wait(self, count: int, *, timeout_s: float = 20.0) -> list[Any]:
        deadline = time.monotonic() + timeout_s
        while len(self.bodies) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.bodies) >= count, f"{len(self.bodies)} of {count} arrived"
        return self.bodies


Answer = Callable[[http.server.BaseHTTPRequestHandler, int], None]


def status(code: int, *, location: str | None = None, body: bytes = b"") -> Answer:
    """Answers with a status."""

    def answer(handler: http.server.BaseHTTPRequestHandler, _number: int) -> None:
        handler.send_response(code)
        if location is not None:
            handler.send_header("Location", location)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def flaky(code: int, *, times: int) -> Answer:
    """Answers with a status so many times, then 200."""

    def answer(handler: http.server.BaseHTTPRequestHandler, number: int) -> None:
        status(code if number < times else 200)(handler, number)

    return answer


def hang(handler: http.server.BaseHTTPRequestHandler, _number: int) -> None:
    """Answers nothing for long."""
    time.sleep(8.0)


def drip(handler: http.server.BaseHTTPRequestHandler, _number: int) -> None:
    """Answers a byte at a time, for ever."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)


def megabytes(handler: http.server.BaseHTTPRequestHandler, _number: int) -> None:
    """Answers 64 MB."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(64):
            handler.wfile.write(b"x" * 2**20)


FINE = status(200)


@contextlib.contextmanager
def receiver(answer: Answer = FINE) -> Iterator[Received]:
    """A receiver on a free port."""
    received: Received

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            number = len(received.bodies)
            received.paths.append(self.path)
            received.ids.append(self.headers.get("Idempotency-Key", ""))
            received.bodies.append(json.loads(body))
            answer(self, number)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    assert issubclass(Server, socketserver.BaseServer)
    server = Server(("127.0.0.1", 0), Handler)
    received = Received(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)
