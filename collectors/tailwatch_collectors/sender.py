"""The sender: one daemon thread that takes the outbox to the service, in order, and keeps the heartbeat.

What it does with an answer:

    accepted (2xx)             done; the answer's directive and metrics are kept
    no answer, 408 425 429 5xx sent again with backoff and jitter, for as long as it takes
    401 403                    sent again slowly: somebody may fix the key while the run goes on
    404 below a run            the run was deleted: created again, once per item
    other 4xx                  refused for good: counted, logged once with the service's reasons, next item
    anything else              no service of ours (a redirect, HTML, a huge body): a few tries, then dropped

An item that is sent again keeps its key, so the service stores it once. `close` bounds all of it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.guard import Guard, shown
from tailwatch_collectors.outbox import BatchItem, Item, NoteItem, Outbox
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.stats import Counters
from tailwatch_collectors.transport import Answer, Transport

FIRST_BACKOFF = 0.25
"""Longest first wait before sending again, seconds; it doubles with every failure."""

LAST_BACKOFF = 30.0
"""Longest wait of the backoff, seconds, and the pace while the key is refused."""

CLOSING_BACKOFF = 0.5
"""Longest wait of the backoff once `close` has been called, seconds."""

MAX_RETRY_AFTER = 120.0
"""Longest wait a service may ask for, seconds."""

UNREADABLE_TRIES = 5
"""Tries before an item is dropped whose answers cannot be read."""

_API = "/api/v1"
_AGAIN = frozenset({408, 425, 429})

Verdict = Literal["accepted", "again", "slowly", "missing", "rejected", "unreadable"]


@dataclass(slots=True)
class News:
    """What the service last told us. Each field is replaced whole, so readers need no lock."""

    directive: dict[str, Any] | None = None
    metrics: Mapping[str, float] | None = None


class Sender:
    """Takes the outbox to the service, in the background."""

    def __init__(
        self,
        *,
        settings: Settings,
        session: str,
        outbox: Outbox,
        transport: Callable[[], Transport],
        counters: Counters,
        guard: Guard,
    ) -> None:
        self.news = News()
        self.run_id: str | None = None
        self.step: int | None = None
        self._settings = settings
        self._session = session
        self._outbox = outbox
        self._open_transport = transport
        self._transport: Transport  # opened by `start`
        self._counters = counters
        self._guard = guard
        # Not the global generator: the trainer's random numbers are its own.
        self._random = random.Random()  # noqa: S311  # jitter, no secret
        self._attempt: int | None = None
        self._config: Mapping[str, Any] = settings.config
        self._beat_at = 0.0
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        # A lock that is only ever tried, so that a signal handler cannot hang on it.
        if self._thread is None and self._starting.acquire(blocking=False):
            try:
                if self._thread is None:
                    # Here, not in the thread: what it imports cannot be imported once the interpreter is exiting.
                    self._transport = self._open_transport()
                    thread = threading.Thread(target=self._run, name="tailwatch-sender", daemon=True)
                    thread.start()
                    self._thread = thread
            finally:
                self._starting.release()

    def stop_by(self, deadline: float) -> None:
        """Send what is left, then stop; at `deadline` (of `time.monotonic`) at the latest."""
        self._deadline = deadline
        self._outbox.ring()

    def join(self, timeout: float) -> None:
        """Wait until the thread has stopped, at most `timeout` seconds; one that hangs is left behind."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # --- the loop ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over():
                with self._guard("sender"):
                    self._turn()
        finally:
            self._transport.close()

    def _turn(self) -> None:
        """One item, or one wait for the next."""
        if self.run_id is None and not self._create_run():
            return
        self._beat()
        item = self._outbox.head()
        if item is None:
            self._outbox.wait(self._beat_at - time.monotonic())
            return
        try:
            self._deliver(item)
        except Exception:
            # An item that breaks us is dropped, so that it does not break us again.
            if self._outbox.remove(item):
                self._counters.drop("error")
            raise

    @property
    def _closing(self) -> bool:
        return self._deadline is not None

    def _over(self) -> bool:
        """True once `close` has been called and there is no time or nothing left."""
        return self._deadline is not None and (time.monotonic() >= self._deadline or len(self._outbox) == 0)

    def _pause(self, seconds: float) -> None:
        """Wait while the heart goes on beating. `close` ends a wait, and gives up where the next would outlast it."""
        until = time.monotonic() + seconds
        if self._deadline is not None and until >= self._deadline:
            self._deadline = time.monotonic()
            return
        closing = self._closing
        while self._closing == closing and (left := until - time.monotonic()) > 0:
            self._outbox.wait(min(left, max(self._beat_at - time.monotonic(), 0.0)) if self.run_id else left)
            if self.run_id is not None:
                self._beat()

    def _backoff(self, failures: int, answer: Answer, verdict: Verdict) -> float:
        if answer.retry_after is not None:
            return min(answer.retry_after, MAX_RETRY_AFTER)
        if verdict == "slowly":
            return LAST_BACKOFF
        longest = CLOSING_BACKOFF if self._closing else LAST_BACKOFF
        return self._random.uniform(0.0, min(longest, FIRST_BACKOFF * 2 ** min(failures, 20)))

    # --- one item ------------------------------------------------------------------------------------------------

    def _deliver(self, item: Item) -> None:
        """Send one item until it is settled, or until `close` runs out of time."""
        failures = 0
        recreated = False
        while not self._over() and self._outbox.holds(item):
            if self.run_id is None and not self._create_run():
                continue
            answer, size = self._send(item)
            verdict = _judge(answer, batch=isinstance(item, BatchItem))
            if verdict == "accepted":
                self._settle(item, answer, size)
                return
            self._note(answer, verdict, f"sending {_name(item)}")
            failures += 1
            if verdict == "missing" and not recreated:
                self.run_id, recreated = None, True
                continue
            if verdict in {"rejected", "missing"}:
                if self._outbox.remove(item):
                    self._counters.add("rejected")
                return
            if verdict == "unreadable" and failures >= UNREADABLE_TRIES:
                if self._outbox.remove(item):
                    self._counters.drop("unreadable_answer")
                return
            self._pause(self._backoff(failures - 1, answer, verdict))
            self._counters.add("retries")

    def _send(self, item: Item) -> tuple[Answer, int]:
        root = f"/runs/{quote(str(self.run_id), safe='')}"
        if isinstance(item, NoteItem):
            headers = {"Content-Type": "application/json", "Idempotency-Key": item.key}
            return self._post(f"{root}/{item.path}", item.body, headers), len(item.body)
        if isinstance(item.content, Batch):
            # Encoded once: what is sent again is the same bytes, and the columns need not be kept beside them.
            item.content = wire.encode(item.content, compression=self._settings.compression)
            item.nbytes = len(item.content)
        answer = self._post(f"{root}/batches", item.content, {"Content-Type": wire.CONTENT_TYPE})
        return answer, len(item.content)

    def _settle(self, item: Item, answer: Answer, size: int) -> None:
        self._hear(answer)
        if self._outbox.remove(item):
            duplicate = answer.content is not None and answer.content.get("status") == "duplicate"
            self._counters.add("duplicates" if duplicate else "sent")
            self._counters.add("sent_bytes", size)

    # --- the run -------------------------------------------------------------------------------------------------

    def _create_run(self) -> bool:
        """Create or find the run; False after a failure, once it has waited."""
        failures = 0
        while not self._over():
            own = {
                "project": self._settings.project,
                "name": self._settings.run,
                "session": self._session,
                "framework": self._settings.framework,
                "world_size": self._settings.world_size,
            }
            fields = {**self._config, **{name: value for name, value in own.items() if value is not None}}
            answer = self._post("/runs", _json(fields), {"Content-Type": "application/json"})
            run_id = (answer.content or {}).get("run_id")
            if answer.accepted and isinstance(run_id, str) and 0 < len(run_id) <= 256:
                attempt = (answer.content or {}).get("attempt")
                self._attempt = attempt if isinstance(attempt, int) else None
                self.run_id = run_id
                self._hear(answer)
                self._beat_at = 0.0
                return True
            verdict = "unreadable" if answer.accepted else _judge(answer, batch=False)
            self._note(answer, verdict, "creating the run")
            if verdict == "rejected" and self._config:
                # Descriptive fields are not worth the run: go on with the names alone.
                self._config = {}
                continue
            slowly = verdict in {"rejected", "missing"}
            self._pause(self._backoff(failures, answer, "slowly" if slowly else verdict))
            failures += 1
            self._counters.add("retries")
        return False

    def _beat(self) -> None:
        """Send the heartbeat if it is due. It is never sent again: the next one says more."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + self._settings.heartbeat
        stats = self._counters.snapshot(queued=len(self._outbox), queued_bytes=0)
        content = {
            "session": self._session,
            "attempt": self._attempt,
            "rank": self._settings.rank,
            "queued": stats.queued,
            "dropped": sum(stats.dropped.values()),
            "sent": stats.sent + stats.duplicates,
            "step": self.step,
        }
        body = _json({name: value for name, value in content.items() if value is not None})
        path = f"/runs/{quote(str(self.run_id), safe='')}/heartbeat"
        answer = self._post(path, body, {"Content-Type": "application/json"})
        if answer.accepted:
            self._hear(answer)
        else:
            self._note(answer, _judge(answer, batch=False), "sending the heartbeat")

    # --- answers -------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        timeout = self._settings.timeout
        if self._deadline is not None:
            timeout = max(0.05, min(timeout, self._deadline - time.monotonic()))
        return self._transport.post(_API + path, body=body, headers=headers, timeout=timeout)

    def _hear(self, answer: Answer) -> None:
        """Keep what an answer says about the directive and the metrics; anything odd in it is passed over."""
        content = answer.content or {}
        directive = content.get("directive", self.news.directive)
        if directive is None or isinstance(directive, dict):
            self.news.directive = directive
        metrics = content.get("metrics")
        if isinstance(metrics, dict) and metrics:
            self.news.metrics = {
                name: float(value)
                for name, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
            }

    def _note(self, answer: Answer, verdict: Verdict, doing: str) -> None:
        self._counters.add("errors")
        what = answer.failure or ""
        if answer.content:
            said = answer.content.get("errors") or answer.content.get("detail") or answer.content
            what = f"{shown(said)} {what}".strip()
        status = "no answer" if answer.status is None else f"HTTP {answer.status}"
        self._guard.once("answer", doing, verdict, str(answer.status), message=f"{doing}: {status}: {what}")


def _judge(answer: Answer, *, batch: bool) -> Verdict:
    status = answer.status
    if status is None or status in _AGAIN or status >= 500:
        return "again"
    if status in {401, 403}:
        return "slowly"
    if answer.accepted:
        # Only the words of the contract acknowledge a batch: any web server answers 200 to something.
        stored = not batch or (answer.content or {}).get("status") in {"stored", "duplicate"}
        return "accepted" if stored else "unreadable"
    if status == 404:
        return "missing"
    return "rejected" if 400 <= status < 500 else "unreadable"


def _name(item: Item) -> str:
    return "a batch" if isinstance(item, BatchItem) else item.path


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()
