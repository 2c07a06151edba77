"""The outbox: what waits to be sent, in order, bounded in items and in bytes.

Putting never blocks: a full outbox refuses. An item stays in here while it is under way and leaves once the service
has answered for it. Signal-safe: the lock is reentrant and `append` is the only moment at which anything changes,
so an interrupt leaves an item in or out, never half in; sizes are summed anew instead of kept in a counter that an
interrupt could leave wrong. A disk spool would take what `put` refuses.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, fields

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.stats import DropReason

_STRING_OVERHEAD = 56


@dataclass(kw_only=True, slots=True, eq=False)
class BatchItem:
    """A batch on its way."""

    content: Batch | bytes
    """The columns; once they are encoded, in the background, the wire record."""
    nbytes: int
    """Size in memory, bytes."""


@dataclass(kw_only=True, slots=True, eq=False)
class NoteItem:
    """Scalars or an event on their way."""

    path: str
    """Path under the run: `scalars` or `events`."""
    body: bytes
    """JSON."""
    key: str
    """Idempotency key: the same however often it is sent."""

    @property
    def nbytes(self) -> int:
        """Size in memory, bytes."""
        return len(self.body)


Item = BatchItem | NoteItem


class Outbox:
    """A bounded first-in first-out queue that never blocks the one who puts."""

    def __init__(self, *, items: int, nbytes: int) -> None:
        self._limit_items = items
        self._limit_bytes = nbytes
        self._items: deque[Item] = deque()
        self._lock = threading.RLock()
        # SimpleQueue.put is reentrant, unlike Event.set, so a signal handler may ring it.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Bytes of everything in here."""
        # The copy is one step for the interpreter: a signal handler that puts cannot fall between.
        return sum(item.nbytes for item in tuple(self._items))

    def put(self, item: Item) -> DropReason | None:
        """Append an item; the reason where it is refused, None where it is taken."""
        if item.nbytes > self._limit_bytes:
            return "too_large"
        with self._lock:
            if len(self._items) >= self._limit_items or self.nbytes + item.nbytes > self._limit_bytes:
                return "queue_full"
            self._items.append(item)
        self.ring()
        return None

    def head(self) -> Item | None:
        """The oldest item; it stays in here."""
        with self._lock:
            return self._items[0] if self._items else None

    def last(self) -> Item | None:
        """The newest item."""
        with self._lock:
            return self._items[-1] if self._items else None

    def holds(self, item: Item) -> bool:
        """True while `item` is in here."""
        with self._lock:
            return item in self._items

    def remove(self, item: Item) -> bool:
        """Take `item` out; False where it was no longer in here."""
        with self._lock:
            if item not in self._items:
                return False
            self._items.remove(item)
            return True

    def clear(self) -> int:
        """Take everything out; how many items that were."""
        with self._lock:
            count = len(self._items)
            self._items.clear()
            return count

    def ring(self) -> None:
        """Wake whoever waits."""
        if self._bell.empty():
            self._bell.put(None)

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, at most `seconds`."""
        try:
            self._bell.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return


def size_of(batch: Batch) -> int:
    """Bytes a batch takes in memory."""
    total = 0
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, tuple):
            total += sum(map(len, value)) + _STRING_OVERHEAD * len(value)
        elif field.name != "meta" and value is not None:
            total += value.nbytes
    return total
