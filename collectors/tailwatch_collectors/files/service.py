"""The way to the service for a process that can wait: one request, its acknowledgement, the next.

Nothing is dropped: a service that is away, busy or failing is asked again with backoff until it answers or the caller
is stopped. Only a refusal (4xx) ends an item, and says why.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.guard import shown
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.transport import Answer, HttpTransport, Transport

FIRST_WAIT = 0.25
"""First wait before asking again, seconds; it doubles with every failure."""

LAST_WAIT = 30.0
"""Longest wait, seconds, and the pace while the key is refused."""

HEARTBEAT = 60.0
"""Time between heartbeats, seconds."""

_AGAIN = frozenset({408, 425, 429})
_API = "/api/v1"


class Stopped(Exception):  # noqa: N818  # no error: somebody asked
    """The caller was stopped before the service had answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one item."""

    status: Literal["stored", "duplicate", "refused"]
    reason: str | None = None
    """Why it was refused."""
    content: Mapping[str, Any] | None = None
    """The service's answer."""


class Service:
    """Posts to one run of one service."""

    def __init__(
        self,
        settings: Settings,
        *,
        stop: threading.Event,
        tell: Callable[[str], None],
        transport: Transport | None = None,
    ) -> None:
        if settings.url is None:
            raise ConfigurationError("no url: pass --url or set TAILWATCH_URL")
        self.url = settings.url
        self._settings = settings
        self._stop = stop
        self._tell = tell
        self._transport = transport or HttpTransport(url=settings.url, api_key=settings.api_key)
        self._run_id: str | None = None
        self._session: str | None = None
        self._beat_at = 0.0

    def open(self, *, session: str | None) -> None:
        """Create or find the run; with a session, its attempt too.

        Raises:
            ConfigurationError: the service refuses it, or is none.
            Stopped: the caller was stopped first.
        """
        settings = self._settings
        fields = {
            **settings.config,
            "project": settings.project,
            "name": settings.run,
            "session": session,
            "framework": settings.framework,
            "world_size": settings.world_size,
        }
        body = _json({name: value for name, value in fields.items() if value is not None})
        answer = self._ask("/runs", body, "application/json", doing="creating the run", patient=False)
        run_id = (answer.content or {}).get("run_id")
        if not answer.accepted or not isinstance(run_id, str):
            raise ConfigurationError(f"{self.url} does not take the run: {_said(answer)}")
        self._run_id, self._session = run_id, session

    def batch(self, batch: Batch) -> Outcome:
        """Post one batch.

        Raises:
            Stopped: the caller was stopped first.
        """
        body = wire.encode(batch, compression="zstd")
        doing = f"sending part {batch.meta.part} of step {batch.meta.step}"
        answer = self._ask_run("batches", body, wire.CONTENT_TYPE, doing=doing)
        status = (answer.content or {}).get("status")
        if answer.accepted and status in {"stored", "duplicate"}:
            return Outcome(status="stored" if status == "stored" else "duplicate", content=answer.content)
        return Outcome(status="refused", reason=_said(answer))

    def note(self, path: Literal["scalars", "events", "heartbeat"], content: Mapping[str, Any], *, key: str) -> Outcome:
        """Post a small record.

        Raises:
            Stopped: the caller was stopped first.
        """
        given = {name: value for name, value in {"session": self._session, **content}.items() if value is not None}
        answer = self._ask_run(path, _json(given), "application/json", doing=f"sending {path}", key=key)
        if answer.accepted:
            return Outcome(status="stored", content=answer.content)
        return Outcome(status="refused", reason=_said(answer))

    def beat(self, *, step: int | None) -> None:
        """Send a heartbeat if one is due."""
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + HEARTBEAT
            self.note("heartbeat", {"rank": self._settings.rank, "step": step}, key=f"beat-{self._beat_at}")

    def close(self) -> None:
        """Give the connection back."""
        self._transport.close()

    def _ask_run(self, path: str, body: bytes, kind: str, *, doing: str, key: str | None = None) -> Answer:
        again = False
        while True:
            root = f"/runs/{quote(str(self._run_id), safe='')}"
            answer = self._ask(f"{root}/{path}", body, kind, doing=doing, key=key)
            if answer.status != 404 or again:
                return answer
            # The run was deleted meanwhile: once, it is made anew.
            again = True
            self.open(session=self._session)

    def _ask(
        self, path: str, body: bytes, kind: str, *, doing: str, key: str | None = None, patient: bool = True
    ) -> Answer:
        """Ask until there is an answer that settles it."""
        headers = {"Content-Type": kind, **({"Idempotency-Key": key} if key else {})}
        failures = 0
        while not self._stop.is_set():
            answer = self._transport.post(_API + path, body=body, headers=headers, timeout=self._settings.timeout)
            denied = answer.status in {401, 403}
            passing = answer.status is None or answer.status in _AGAIN or answer.status >= 500
            if not passing and not (denied and patient):
                return answer
            if failures % 20 == 0:
                self._tell(f"{doing}: {_said(answer)}; trying again")
            self._stop.wait(LAST_WAIT if denied else _wait(failures, answer))
            failures += 1
        raise Stopped


def _wait(failures: int, answer: Answer) -> float:
    if answer.retry_after is not None:
        return min(answer.retry_after, 4 * LAST_WAIT)
    return min(LAST_WAIT, float(FIRST_WAIT * 2 ** min(failures, 20)))


def _said(answer: Answer) -> str:
    if answer.status is None:
        return f"no answer ({answer.failure})"
    content = answer.content or {}
    said = content.get("errors") or content.get("detail") or content or answer.failure or ""
    return f"HTTP {answer.status} {shown(said)}"


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()
