"""Counters of one collector, and the frozen snapshot of them.

Everything handed over is accounted for:
recorded = sent + duplicates + rejected + all dropped + queued + spooled.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DropReason = Literal[
    "queue_full",
    "too_large",
    "invalid",
    "empty",
    "error",
    "unreadable_answer",
    "closed",
    "no_url",
    "overhead",
    "spool_full",
    "spool_damaged",
]
"""Why something was not sent: the queue was full; larger than the whole queue; arrays that form no batch; no rows
and not final; an internal error; the service's answers could not be read; after or left over at `close`; neither URL
nor spool; the budget of overhead was spent; the spool was full; the spool was damaged on disk."""

Counter = Literal[
    "recorded",
    "sent",
    "duplicates",
    "rejected",
    "errors",
    "retries",
    "sent_bytes",
    "replayed",
    "adopted",
    "spool_errors",
    "gathered",
]


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
    spooled: int = 0
    """Items waiting on disk now."""
    spooled_bytes: int = 0
    """Size of the spool on disk, bytes, what was adopted included."""
    replayed: int = 0
    """Items sent from the disk; they are among `sent`, `duplicates` and `rejected` too."""
    adopted: int = 0
    """Items of earlier processes that were sent from the disk; not among the others."""
    adopted_dropped: int = 0
    """Items of earlier processes that were dropped because the spool was full."""
    damaged: int = 0
    """Places in the spool at which something stood that was no record: a torn tail, flipped bytes."""
    spool_errors: int = 0
    """Writes the disk refused; the items stayed in memory."""
    gathered: int = 0
    """Batches handed to rank 0, which sends them."""
    overhead: float = 0.0
    """Share of the wall time since `connect` that was spent in our calls and in our threads' CPU time."""
    level: str = "full"
    """What the budget of overhead allows now: full, edge, sample, count."""


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

    def snapshot(self, *, dropped: Mapping[DropReason, int] | None = None, **more: Any) -> Stats:
        """The counters now, with what only others know: further drops, and fields of `Stats`."""
        with self._lock:
            counts, drops = dict(self._counts), dict(self._dropped)
        for reason, count in (dropped or {}).items():
            if count:
                drops[reason] = drops.get(reason, 0) + count
        counted: dict[str, Any] = {str(name): count for name, count in counts.items() if name != "sent_bytes"}
        return Stats(dropped=drops, bytes=counts.get("sent_bytes", 0), **counted, **more)
