"""The server: uvicorn on a socket of ours, so that a busy port is known before anything starts."""

from __future__ import annotations

import errno
import logging
import socket

import uvicorn
from fastapi import FastAPI

from tailwatch_service.errors import SettingsError
from tailwatch_service.settings import Settings

KEEP_ALIVE_S = 75
"""How long an idle connection stays: longer than the SDK keeps one, so that it never writes into a closed one."""

GRACE_S = 10
"""How long requests in progress may take once the service is told to stop."""


class Server(uvicorn.Server):
    """uvicorn, except that live streams end before it waits for open connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; streams first."""
        services = getattr(self.config.app.state, "services", None)  # type: ignore[union-attr]
        if services is not None:
            services.hub.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        SettingsError: the address is taken, not allowed or not of this machine; in one line.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} of {host} is in use; choose another with --port") from error
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def make(app: FastAPI, settings: Settings) -> Server:
    """A server for the application; run it with the socket of `listen`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    return Server(config)


def url_of(listener: socket.socket) -> str:
    """Address to open in a browser."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def configure_logging(level: str) -> None:
    """Log lines of the service and of uvicorn, to stderr."""
    logging.basicConfig(
        level=getattr(logging, level.upper()), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for quiet in ("alembic", "httpx", "httpcore", "sse_starlette"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
