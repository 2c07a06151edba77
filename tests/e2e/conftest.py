"""A real service in a process of its own, on a port and a data directory of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

START_S = 60.0
STOP_S = 30.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """URL of a running service; its data are under `tmp_path / "data"`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tailwatch_service", "serve", "--port", str(port)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
    process = subprocess.Popen([*command, "--data-dir", str(tmp_path / "data")], env=environ)
    try:
        _wait(process, url)
        yield url
    finally:
        process.terminate()
        assert process.wait(STOP_S) == 0, "SIGTERM ends the service cleanly"


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended by itself"
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"no answer from {url} within {START_S} s")
