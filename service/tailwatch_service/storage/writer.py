"""Writer: one thread that commits batches in groups, so that many connections share one flush to the disk.

It takes whatever is queued, up to 32, and commits; while the disk works, the next group gathers by itself, so there
is no need to wait for company. A future is resolved only after its commit returned. If a group fails, its batches are
tried again one by one: a poisoned batch fails alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import sqlalchemy as sa

from tailwatch_service.errors import TailwatchServiceError, Unavailable
from tailwatch_service.storage import batches
from tailwatch_service.storage.database import Database
from tailwatch_service.types import BatchOutcome, NewBatch

GROUP = 32
"""Most batches in one transaction."""

CAPACITY = 1024
"""Most batches waiting; beyond it clients are asked to come back."""

TRIES = 3
"""How often a single batch is tried when other replicas store the same key at the same moment."""

_Item = tuple[NewBatch, "Future[BatchOutcome]"]
_Answer = BatchOutcome | TailwatchServiceError


class Writer:
    """Group commit of batches. Thread-safe; runs from `start` to `close`."""

    def __init__(
        self,
        db: Database,
        *,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._clock = clock
        self._queue: queue.Queue[_Item | None] = queue.Queue(capacity)
        self._closed = False
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="tailwatch-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, batch: NewBatch) -> Future[BatchOutcome]:
        """Queue a batch. The future's result is durable; it raises `KeyConflict`, `NotFound` or `Unavailable`.

        Raises:
            Unavailable: the queue is full, or the writer is closed.
        """
        future: Future[BatchOutcome] = Future()
        with self._gate:
            if self._closed:
                raise Unavailable("the service is stopping")
            try:
                self._queue.put_nowait((batch, future))
            except queue.Full as error:
                raise Unavailable(f"{self._queue.maxsize} batches are waiting, the limit") from error
        return future

    def waiting(self) -> int:
        """Batches in the queue."""
        return self._queue.qsize()

    def alive(self) -> bool:
        """True while batches can be stored."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """Commit what is queued, then stop."""
        with self._gate:
            already, self._closed = self._closed, True
        if not already and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            group: list[_Item] = []
            item = self._queue.get()
            while item is not None:
                group.append(item)
                if len(group) == GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            running = item is not None
            wanted = [(batch, future) for batch, future in group if future.set_running_or_notify_cancel()]
            if wanted:
                self._commit(wanted)

    def _commit(self, group: list[_Item]) -> None:
        try:
            answers = self._store([batch for batch, _ in group])
        # Whatever it was, the others of the group must not suffer.
        except Exception as error:  # noqa: BLE001
            if len(group) == 1:
                group[0][1].set_exception(_explained(error))
                return
            for item in group:
                self._commit([item])
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if isinstance(answer, BatchOutcome):
                future.set_result(answer)
            else:
                future.set_exception(answer)

    def _store(self, group: list[NewBatch], *, tries: int = TRIES) -> list[_Answer]:
        try:
            # Leaving the block commits; a caller of this has durable answers.
            with self._db.write() as connection:
                return batches.store(connection, group, now=self._clock())
        except sa.exc.IntegrityError:
            # Another replica stored the key in between: the next look sees it, and answers `duplicate`.
            if len(group) > 1 or tries == 1:
                raise
            return self._store(group, tries=tries - 1)


def _explained(error: Exception) -> Exception:
    """An error of the database that may pass is the client's cue to come back."""
    if isinstance(error, sa.exc.OperationalError):
        again = Unavailable("the database cannot be written to at the moment")
        again.__cause__ = error
        return again
    return error
