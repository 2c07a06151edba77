"""A real server on a free port, in a thread, for what needs a connection: streams, the SDK, the replay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from tailwatch_service import server
from tailwatch_service.app import create_app
from tailwatch_service.services import Services
from tailwatch_service.settings import Settings


@dataclass
class Served:
    """A server that runs."""

    app: FastAPI
    url: str
    server: server.Server
    thread: threading.Thread

    @property
    def services(self) -> Services:
        found: Services = self.app.state.services
        return found

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20.0)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serve(data_dir: Path, **settings: Any) -> Iterator[Served]:
    """Serve on a free port until the block is left."""
    own = Settings(**{"data_dir": data_dir, "port": 0, "log_level": "error", "live_poll_s": 0.2, **settings})
    listener = server.listen(own.host, own.port)
    app = create_app(own)
    serving = server.make(app, own)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    served = Served(app, server.url_of(listener), serving, thread)
    deadline = time.monotonic() + 30.0
    while not serving.started and time.monotonic() < deadline and thread.is_alive():
        time.sleep(0.01)
    assert serving.started
    try:
        yield served
    finally:
        served.stop()
        listener.close()
