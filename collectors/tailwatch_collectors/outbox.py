"""The outbox: what waits to be sent, in order of recording, bounded in items and in bytes.

Putting never blocks. An item stays in here while it is under way and leaves once the service has answered for it, or
once it is in the spool. A full outbox follows its policy: the oldest goes, or the newest, or a random one, so that
what is kept is a sample of all. What is under way is never dropped.

Signal-safe: the lock is reentrant and every change is one step for the interpreter, so an interrupt leaves an item in
or out, never half in; sizes are summed anew instead of kept in a counter that an interrupt could leave wrong.
"""

from __future__ import annotations

import queue
import random
import threading
from collections import deque
from typing import Literal

from tailwatch_collectors.items import BatchItem, Item
from tailwatch_collectors.stats import DropReason

Policy = Literal["drop-oldest", "drop-newest", "sample"]


class Outbox:
    """A bounded first-in first-out queue that never blocks the one who puts."""

    def __init__(self, *, items: int, nbytes: int, policy: Policy = "drop-oldest") -> None:
        self.spill_all = False
        """The service is away: everything belongs on disk, so every put wakes the scribe."""
        self.quiet = False
        """Whoever sends is waiting for the service, not for items: puts need not wake it."""
        self._limit_items = items
        self._limit_bytes = nbytes
        self._policy: Policy = policy
        self._items: deque[Item] = deque()
        self._lock = threading.RLock()
        # SimpleQueue.put is reentrant, unlike Event.set, so a signal handler may ring it.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.scribe_bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Rung where something is to be written to disk."""
        self._overflowing = 0
        # Not the global generator: the trainer's random numbers are its own.
        self._random = random.Random()  # noqa: S311  # a sample, no secret

    def __len__(self) -> int:
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Bytes of everything in here."""
        # The copy is one step for the interpreter: a signal handler that puts cannot fall between.
        return sum(item.nbytes for item in tuple(self._items))

    @property
    def fill(self) -> float:
        """How full it is, 0 to 1: in items or in bytes, whichever is more."""
        return max(len(self._items) / self._limit_items, self.nbytes / self._limit_bytes)

    def put(self, item: Item) -> list[tuple[DropReason, Item]]:
        """Append an item; what was dropped for it, or instead of it."""
        if item.nbytes > self._limit_bytes:
            return [("too_large", item)]
        dropped: list[tuple[DropReason, Item]] = []
        with self._lock:
            waiting = self.nbytes
            while len(self._items) >= self._limit_items or waiting + item.nbytes > self._limit_bytes:
                victim = self._victim(item)
                dropped.append(("queue_full", victim))
                if victim is item:
                    break
                self._items.remove(victim)
                waiting -= victim.nbytes
            else:
                self._items.append(item)
                waiting += item.nbytes
            full = 2 * len(self._items) > self._limit_items or 2 * waiting > self._limit_bytes
        if not self.quiet:
            self.ring()
        if full or self.spill_all:
            self.ring_scribe()
        return dropped

    def _victim(self, new: Item) -> Item:
        """Who goes when it is full: scalars and events only where no batch can."""
        self._overflowing += 1
        if self._policy == "drop-newest":
            return new
        free = [item for item in self._items if not item.claimed]
        batches = [item for item in free if isinstance(item, BatchItem)] or free
        if not batches:
            return new
        if self._policy == "drop-oldest":
            return batches[0]
        # A reservoir: the n-th item that comes while it is full is kept with probability size / (size + n).
        kept = self._random.random() * (len(batches) + self._overflowing) < len(batches)
        return self._random.choice(batches) if kept else new

    def claim(self) -> Item | None:
        """The oldest item nobody works on, now under way; it stays in here."""
        with self._lock:
            for item in self._items:
                if not item.claimed:
                    item.claimed = True
                    return item
        return None

    def release(self, item: Item) -> None:
        """The item is no longer under way."""
        item.claimed = False

    def items(self) -> tuple[Item, ...]:
        """Everything in here, oldest first. Takes no lock, so it never waits for an interrupted thread."""
        return tuple(self._items)

    def last(self) -> Item | None:
        """The newest item."""
        with self._lock:
            return self._items[-1] if self._items else None

    def remove(self, item: Item) -> bool:
        """Take `item` out; False where it was no longer in here."""
        with self._lock:
            if item not in self._items:
                return False
            self._items.remove(item)
            if 2 * len(self._items) < self._limit_items:
                self._overflowing = 0
            return True

    def holds_up_to(self, seq: int) -> bool:
        """True while an item recorded at or before `seq` is in here."""
        return any(item.seq <= seq for item in tuple(self._items))

    def clear(self) -> int:
        """Take everything out; how many items that were."""
        with self._lock:
            count = len(self._items)
            self._items.clear()
            return count

    def ring(self) -> None:
        """Wake whoever sends."""
        if self._bell.empty():
            self._bell.put(None)

    def ring_scribe(self) -> None:
        """Wake whoever writes to disk."""
        if self.scribe_bell.empty():
            self.scribe_bell.put(None)

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, at most `seconds`."""
        wait(self._bell, seconds)


def wait(bell: queue.SimpleQueue[None], seconds: float) -> None:
    """Sleep until a bell rings, at most `seconds`."""
    try:
        bell.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        return
