"""The sender: one daemon thread that takes the outbox and the spool to the service, and keeps the heartbeat.

What it does with an answer:

    accepted (2xx)             done; the answer's directive and metrics are kept
    no answer, 408 425 429 5xx sent again with backoff and jitter, for as long as it takes
    401 403                    sent again slowly: somebody may fix the key while the run goes on
    404 below a run            the run was deleted: created again, once per item
    other 4xx                  refused for good: counted, logged once with the service's reasons, next item
    anything else              no service of ours (a redirect, HTML, a huge body): with a spool as if it were away;
                               without one a few tries, then dropped

An item that is sent again keeps its key, so the service stores it once. After a few failures in a row the service
counts as away (`breaker.py`): one request at a time asks whether it is back, and the queue goes to disk. What is on
disk is sent oldest first, one item after every live one. `close` bounds all of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.breaker import Breaker
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.guard import Guard, shown
from tailwatch_collectors.items import Form, Item, Post, request_of
from tailwatch_collectors.mode import Chooser
from tailwatch_collectors.outbox import Outbox
from tailwatch_collectors.overhead import Meter
from tailwatch_collectors.segment import Record
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.shelf import Entry
from tailwatch_collectors.spool import Spool
from tailwatch_collectors.stats import Counter, Counters, DropReason, Stats
from tailwatch_collectors.transport import Answer, Transport

UNREADABLE_TRIES = 5
"""Tries before an item is dropped whose answers cannot be read, where there is no spool."""

API = "/api/v1"
"""Root of the calls."""
_AGAIN = frozenset({408, 425, 429})
_TICK = 5.0
"""Longest sleep: how late a window of the overhead may end, seconds."""

Verdict = Literal["accepted", "again", "slowly", "missing", "rejected", "unreadable"]
Work = Item | Entry
"""What can be sent: an item of the outbox, or a record of the spool."""


@dataclass(slots=True)
class News:
    """What the service last told us. Each field is replaced whole, so readers need no lock."""

    directive: dict[str, Any] | None = None
    metrics: Mapping[str, float] | None = None


class Sender:
    """Takes the outbox and the spool to the service, in the background."""

    def __init__(
        self,
        *,
        settings: Settings,
        session: str,
        outbox: Outbox,
        spool: Spool | None,
        encode: Callable[[Batch, Form], Post],
        transport: Callable[[], Transport],
        counters: Counters,
        guard: Guard,
        meter: Meter,
        chooser: Chooser,
        stats: Callable[[], Stats],
        tick: Callable[[], None],
    ) -> None:
        self.news = News()
        self.run_id: str | None = None
        self.step: int | None = None
        self.breaker = Breaker()
        self._settings = settings
        self._session = session
        self._outbox = outbox
        self._spool = spool
        self._encode = encode
        self._open_transport = transport
        self._transport: Transport  # opened by `start`
        self._counters = counters
        self._guard = guard
        self._meter = meter
        self._chooser = chooser
        self._stats = stats
        self._tick = tick
        self._attempt: int | None = None
        self._run_fields = settings.run_fields(session)
        self._known_runs: dict[str, str] = {}
        self._introduced = False
        self._replays_next = False
        self._beat_at = 0.0
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self.finishing = threading.Lock()
        """Held while an item that is gone is not counted yet."""

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises:
            OSError: the certificates cannot be read.
        """
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
                self._meter.cpu("sender", time.thread_time())
        finally:
            self._transport.close()

    def _turn(self) -> None:
        """One item, or one wait for the next."""
        self._tick()
        if self.run_id is None and not self._create_run():
            return
        self._beat()
        work = self._next()
        if work is None:
            self._outbox.wait(min(self._beat_at - time.monotonic(), _TICK))
            return
        try:
            self._deliver(work)
        except Exception:
            # An item that breaks us is dropped, so that it does not break us again.
            self._finish(work, dropped="error")
            raise

    def _next(self) -> Work | None:
        """What to send next: live items and those on disk in turn."""
        stored = None if self._spool is None else self._spool.head()
        item = None if stored is not None and self._replays_next else self._outbox.claim()
        self._replays_next = item is not None
        return stored if item is None else item

    @property
    def _closing(self) -> bool:
        return self._deadline is not None

    def _over(self) -> bool:
        """True once `close` has been called and there is no time, nothing left, or nobody to send it to."""
        if self._deadline is None:
            return False
        if time.monotonic() >= self._deadline:
            return True
        if self._spool is None:
            return len(self._outbox) == 0
        # What is on disk is safe: it is worth the exit's time only while the service answers.
        return self.breaker.open or (len(self._outbox) == 0 and (self.run_id is None or self._spool.head() is None))

    def _pause(self, seconds: float) -> None:
        """Wait while the heart goes on beating. `close` ends a wait, and gives up where the next would outlast it."""
        until = time.monotonic() + seconds
        if self._deadline is not None and until >= self._deadline:
            self._deadline = time.monotonic()
            return
        closing = self._closing
        self._outbox.quiet = True
        try:
            while self._closing == closing and (left := until - time.monotonic()) > 0:
                self._outbox.wait(min(left, max(self._beat_at - time.monotonic(), 0.0), _TICK) if self.run_id else left)
                self._tick()
                if self.run_id is not None:
                    self._beat()
        finally:
            self._outbox.quiet = False

    def _failed(self, answer: Answer, verdict: Verdict) -> None:
        """Wait before the next try; while the service counts as away the queue goes to disk."""
        wait = self.breaker.failed(retry_after=answer.retry_after, slowly=verdict == "slowly", closing=self._closing)
        if self.breaker.open and self._spool is not None:
            self._outbox.spill_all = True
            self._outbox.ring_scribe()
        self._pause(wait)
        self._counters.add("retries")

    def _answered(self) -> None:
        self.breaker.succeeded()
        self._outbox.spill_all = False

    # --- one item ------------------------------------------------------------------------------------------------

    def _deliver(self, work: Work) -> None:
        """Send one item once: it is settled, or stays where it is."""
        try:
            post = work.record if isinstance(work, Entry) else work.post(self._encode)
        except BatchError as error:
            self._finish(work, dropped="invalid")
            if not self._guard.caught("record", error):
                raise
            return
        run_id = self._run_of(work)
        if run_id is None:
            self._give_back(work)
            return
        started = time.monotonic()
        answer = self._send(run_id, post)
        verdict = judge(answer, batch=is_batch(post))
        if verdict == "accepted":
            self._chooser.sent(len(post.body), time.monotonic() - started)
            self._settle(work, answer, len(post.body))
            return
        self._note(answer, verdict, f"sending {_name(post)}")
        if verdict == "missing" and not work.recreated:
            work.recreated = True
            self._forget_run(work)
            self._give_back(work)
        elif verdict in {"rejected", "missing"}:
            self._answered()
            self._finish(work, counted="rejected")
        else:
            self._again(work, answer, verdict)

    def _again(self, work: Work, answer: Answer, verdict: Verdict) -> None:
        if verdict == "unreadable":
            work.tries += 1
            if self._spool is None and work.tries >= UNREADABLE_TRIES:
                self._finish(work, dropped="unreadable_answer")
                return
        self._give_back(work)
        self._failed(answer, verdict)

    def _send(self, run_id: str, post: Post | Record) -> Answer:
        path, headers = request_of(post)
        return self._post(f"/runs/{quote(run_id, safe='')}/{path}", post.body, headers)

    def _settle(self, work: Work, answer: Answer, size: int) -> None:
        self._answered()
        self._hear(answer)
        duplicate = answer.content is not None and answer.content.get("status") == "duplicate"
        if self._finish(work, counted="duplicates" if duplicate else "sent"):
            self._counters.add("sent_bytes", size)

    def _finish(self, work: Work, *, counted: Counter | None = None, dropped: DropReason | None = None) -> bool:
        """Take an item out for good and count it; False where it had gone already."""
        with self.finishing:
            return self._take_out(work, counted=counted, dropped=dropped)

    def _take_out(self, work: Work, *, counted: Counter | None, dropped: DropReason | None) -> bool:
        if not isinstance(work, Entry):
            if not self._outbox.remove(work):
                return False
        elif self._spool is None or not self._spool.settle(work):
            return False
        if isinstance(work, Entry) and self._spool is not None:
            if work.shelf.owned and work.record.seq in self._spool.redundant:
                self._spool.redundant.discard(work.record.seq)  # counted when its first answer came
                return True
            self._counters.add("replayed" if work.shelf.owned else "adopted")
            if not work.shelf.owned:
                return True
        if counted is not None:
            self._counters.add(counted)
        if dropped is not None:
            self._counters.drop(dropped)
        return True

    def _give_back(self, work: Work) -> None:
        """Not under way any more; a record of the spool never left it."""
        if not isinstance(work, Entry):
            self._outbox.release(work)

    # --- the run -------------------------------------------------------------------------------------------------

    def _create_run(self) -> bool:
        """Create or find the run; False after a failure, once it has waited.

        Earlier launches of it that left something in the spool are made known first: attempts keep their order.
        """
        if not self._introduced and self._spool is not None:
            for fields in self._spool.earlier_runs():
                if self._register(fields) is None:
                    return False
        self._introduced = True
        run_id = self._register(self._run_fields)
        if run_id is None:
            return False
        self.run_id = run_id
        self._beat_at = 0.0
        return True

    def _run_of(self, work: Work) -> str | None:
        """The service's name for the run an item belongs to; None after a failure, once it has waited."""
        if not isinstance(work, Entry) or work.record.run == self._run_fields:
            return self.run_id
        return self._known_runs.get(_fingerprint(work.record.run)) or self._register(work.record.run)

    def _forget_run(self, work: Work) -> None:
        if isinstance(work, Entry):
            self._known_runs.pop(_fingerprint(work.record.run), None)
        if not isinstance(work, Entry) or work.record.run == self._run_fields:
            self.run_id = None

    def _register(self, fields: Mapping[str, Any]) -> str | None:
        """Ask for the run's id; None after a failure, once it has waited."""
        answer = self._post_run(fields)
        plain = {name: fields[name] for name in ("project", "name", "session") if name in fields}
        if answer.status is not None and judge(answer, batch=False) == "rejected" and plain != dict(fields):
            # Descriptive fields are not worth the run: go on with the names alone.
            self._note(answer, "rejected", "creating the run")
            answer = self._post_run(plain)
        run_id = (answer.content or {}).get("run_id")
        if answer.accepted and isinstance(run_id, str) and 0 < len(run_id) <= 256:
            self._answered()
            self._known_runs[_fingerprint(fields)] = run_id
            if fields is self._run_fields:
                attempt = (answer.content or {}).get("attempt")
                self._attempt = attempt if isinstance(attempt, int) else None
                self._hear(answer)
            return run_id
        verdict = "unreadable" if answer.accepted else judge(answer, batch=False)
        self._note(answer, verdict, "creating the run")
        self._failed(answer, "slowly" if verdict in {"rejected", "missing"} else verdict)
        return None

    def _post_run(self, fields: Mapping[str, Any]) -> Answer:
        return self._post("/runs", _json(fields), {"Content-Type": "application/json"})

    def _beat(self) -> None:
        """Send the heartbeat if it is due. It is never sent again: the next one says more."""
        if time.monotonic() < self._beat_at:
            return
        self._beat_at = time.monotonic() + self._settings.heartbeat
        if self._spool is not None and not self.breaker.open:
            self._spool.adopt()
        stats = self._stats()
        content = {
            "session": self._session,
            "attempt": self._attempt,
            "rank": self._settings.rank,
            "queued": stats.queued,
            "dropped": sum(stats.dropped.values()),
            "sent": stats.sent + stats.duplicates,
            "rejected": stats.rejected,
            "spooled": stats.spooled,
            "replayed": stats.replayed,
            "overhead": round(stats.overhead, 6),
            "level": stats.level,
            "step": self.step,
        }
        body = _json({name: value for name, value in content.items() if value is not None})
        path = f"/runs/{quote(str(self.run_id), safe='')}/heartbeat"
        answer = self._post(path, body, {"Content-Type": "application/json"})
        if answer.accepted:
            self._hear(answer)
        else:
            self._note(answer, judge(answer, batch=False), "sending the heartbeat")

    # --- answers -------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        timeout = self._settings.timeout
        if self._deadline is not None:
            timeout = max(0.05, min(timeout, self._deadline - time.monotonic()))
        return self._transport.post(API + path, body=body, headers=headers, timeout=timeout)

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


def judge(answer: Answer, *, batch: bool) -> Verdict:
    """What an answer means; a batch is stored only where the answer says so."""
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


def is_batch(post: Post | Record) -> bool:
    """Whether it is tokens or a summary, whose answer has to say that it is stored."""
    return post.route in {"batches", "summaries"}


def _name(post: Post | Record) -> str:
    return "a batch" if is_batch(post) else post.route


def _fingerprint(fields: Mapping[str, Any]) -> str:
    return json.dumps([fields.get(name) for name in ("project", "name", "session")])


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()
