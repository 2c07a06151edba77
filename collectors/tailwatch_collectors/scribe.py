"""The scribe: one daemon thread that writes to the spool what the queue should not hold.

That is everything while the service is away (or where there is no URL), what fills the queue beyond half, and what is
left at `close` and at SIGTERM. A disk that refuses costs nothing: the items stay in memory, and the disk is asked
again later. The trainer's threads never touch the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.errors import BatchError
from tailwatch_collectors.guard import Guard
from tailwatch_collectors.items import Form, Item, Post
from tailwatch_collectors.outbox import Outbox, wait
from tailwatch_collectors.overhead import Meter
from tailwatch_collectors.segment import Record
from tailwatch_collectors.spool import Spool, TooLargeError
from tailwatch_collectors.stats import Counters

HIGH = 0.5
"""How full the queue may be before its oldest items go to disk."""

SYNC_INTERVAL = 1.0
"""Time between syncs at the policy `interval`, seconds."""

FIRST_REST = 1.0
LAST_REST = 60.0
"""Waits after the disk has refused, seconds."""


class Scribe:
    """Takes items from the outbox to the spool, in the background."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        spool: Spool,
        run: Mapping[str, Any],
        encode: Callable[[Batch, Form], Post],
        counters: Counters,
        guard: Guard,
        meter: Meter,
    ) -> None:
        self._outbox = outbox
        self._spool = spool
        self._run_fields = run
        self._encode = encode
        self._counters = counters
        self._guard = guard
        self._meter = meter
        self._resting_until = 0.0
        self._rest = FIRST_REST
        self._sync_at: float | None = None
        """When what was written is to be synced, by `time.monotonic`; None: it is."""
        self._wanted: threading.Event | None = None
        self._deadline: float | None = None
        self._ended = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        # A lock that is only ever tried, so that a signal handler cannot hang on it.
        if self._thread is None and self._starting.acquire(blocking=False):
            try:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tailwatch-scribe", daemon=True)
                    thread.start()
                    self._thread = thread
            finally:
                self._starting.release()

    def spill(self, deadline: float, *, end: bool = False) -> bool:
        """Write everything in the outbox to disk, what is under way included; False where it was not done in time.

        Takes no lock that the interrupted thread might hold, so a signal handler may call it.

        Args:
            deadline: of `time.monotonic`.
            end: stop the thread afterwards.
        """
        if self._thread is None or self._ended:
            return False
        done = threading.Event()
        self._deadline, self._wanted, self._ended = deadline, done, end
        self._outbox.ring_scribe()
        return done.wait(max(deadline - time.monotonic(), 0.0))

    # --- the loop ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        over = False
        while not over:
            with self._guard("spool"):
                over = self._turn()
            self._meter.cpu("scribe", time.thread_time())

    def _turn(self) -> bool:
        """Write what is to be written, then wait; True at the end."""
        wanted = self._wanted
        if wanted is not None:
            self._wanted = None
            over = self._ended
            written: list[Item] = []
            try:
                written = self._write_all()
            finally:
                # At the end the outbox is emptied first, for what is left in it then counts as dropped. Otherwise
                # the answer comes first: who waits for it may be a signal handler that interrupted a `put`.
                if not over:
                    wanted.set()
                for item in written:
                    self._leave(item)
                wanted.set()
            return over
        while self._surplus() and time.monotonic() >= self._resting_until:
            claimed = self._outbox.claim()
            if claimed is None:
                break
            if self._write(claimed):
                self._leave(claimed)
            else:
                self._outbox.release(claimed)
            self._sync_when_due()
        if self._sync_at is not None:
            # Bells come with every record: they must not make a sync of each.
            wait(self._outbox.scribe_bell, self._sync_at - time.monotonic())
            self._sync_when_due()
        else:
            rest = self._resting_until - time.monotonic()
            wait(self._outbox.scribe_bell, rest if rest > 0 else LAST_REST)
            if rest > 0 and self._wanted is None:
                # A bell does not shorten the rest: a full disk is not asked at every record.
                time.sleep(min(max(self._resting_until - time.monotonic(), 0.0), SYNC_INTERVAL / 10))
        return False

    def _leave(self, item: Item) -> None:
        """The item is on disk, so it leaves the outbox; counted once where it was answered for meanwhile."""
        if not self._outbox.remove(item):
            self._spool.redundant.add(item.seq)

    def _surplus(self) -> bool:
        return self._wanted is None and (self._outbox.spill_all or self._outbox.fill > HIGH)

    def _write_all(self) -> list[Item]:
        """Write everything, oldest first, until the deadline; what was written."""
        self._resting_until = 0.0
        written: list[Item] = []
        for item in self._outbox.items():
            if self._deadline is not None and time.monotonic() >= self._deadline:
                break
            item.claimed = True
            if self._write(item):
                written.append(item)
            elif self._resting_until:
                break  # the disk refuses
        self._sync()
        return written

    def _write(self, item: Item) -> bool:
        """Whether the item is accounted for on disk (or dropped for good), so that it may leave the outbox."""
        try:
            post = item.post(self._encode)
        except BatchError as error:
            if self._outbox.remove(item):
                self._counters.drop("invalid")
            self._guard.caught("record", error)
            return False
        except Exception:
            if self._outbox.remove(item):
                self._counters.drop("error")
            raise
        record = Record(run=self._run_fields, route=post.route, key=post.key, seq=item.seq, body=post.body)
        try:
            self._spool.append(record)
        except (OSError, TooLargeError) as error:
            self._refused(error)
            return False
        self._rest, self._resting_until = FIRST_REST, 0.0
        if self._sync_at is None:
            self._sync_at = time.monotonic() + SYNC_INTERVAL
        return True

    def _sync_when_due(self) -> None:
        if self._sync_at is not None and time.monotonic() >= self._sync_at:
            self._sync()

    def _sync(self) -> None:
        if self._sync_at is None:
            return
        self._sync_at = None
        try:
            self._spool.sync()
        except OSError as error:
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        self._counters.add("spool_errors")
        what = f"{type(error).__name__}: {error!s:.200}"
        self._guard.once("spool", type(error).__name__, message=f"writing to the spool: {what}; kept in memory")
        self._resting_until = time.monotonic() + self._rest
        self._rest = min(2 * self._rest, LAST_REST)
