"""Counters of one collector, and the frozen snapshot of them.

Everything handed over is accounted for: recorded = sent + duplicates + rejected + all dropped + queued.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DropReason = Literal["queue_full", "too_large", "invalid", "empty", "error", "unreadable_answer", "closed", "no_url"]
"""Why something was not sent: the queue was full; larger than the whole queue; arrays that form no batch; no rows
and not final; an internal error; the service's answers could not be read; after or left over at `close`; no URL."""

Counter = Literal["recorded", "sent", "duplicates", "rejected", "errors", "retries", "sent_bytes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What a collector has done so far. Items are batches, scalars and events alike."""

    recorded: int = 0
    """Items handed over by the trainer."""
    sent: int = 0
    """Items the service has acknowledged as stored."""
    duplicates: int = 0
    """Items the service already had: a retry whose first answer was lost."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Items that will never be sent, by `DropReason`."""
    rejected: int = 0
    """Items the service refused for good (4xx)."""
    errors: int = 0
    """Failed requests and swallowed exceptions."""
    retries: int = 0
    """Requests sent again."""
    queued: int = 0
    """Items waiting now, the one under way included."""
    queued_bytes: int = 0
    """Their size in memory, bytes."""
    bytes: int = 0
    """Bytes of acknowledged bodies."""


class Counters:
    """The counters behind `Stats`; several threads add to them. A signal handler that records may cost a count."""

    def __init__(self) -> None:
        # Reentrant: a signal handler that records may interrupt its own thread in here.
        self._lock = threading.RLock()
        self._counts: dict[Counter, int] = {}
        self._dropped: dict[str, int] = {}

    def add(self, name: Counter, count: int = 1) -> None:
        """Add to one counter."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count items that will never be sent."""
        if count:
            with self._lock:
                self._dropped[reason] = self._dropped.get(reason, 0) + count

    def snapshot(self, *, queued: int, queued_bytes: int) -> Stats:
        """The counters now."""
        with self._lock:
            counts, dropped = dict(self._counts), dict(self._dropped)
        return Stats(
            recorded=counts.get("recorded", 0),
            sent=counts.get("sent", 0),
            duplicates=counts.get("duplicates", 0),
            dropped=dropped,
            rejected=counts.get("rejected", 0),
            errors=counts.get("errors", 0),
            retries=counts.get("retries", 0),
            queued=queued,
            queued_bytes=queued_bytes,
            bytes=counts.get("sent_bytes", 0),
        )
