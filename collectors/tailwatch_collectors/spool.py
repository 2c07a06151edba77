"""The spool: what could not be sent yet, on disk, bounded, and exact after a restart.

Every process has a shelf of its own below one directory (`shelf.py`), so ranks and jobs may share it. A shelf whose
owner has died is adopted by whoever sees it first; a lock that the kernel frees keeps it to one. Records leave only
when they are acknowledged, or, counted, when the spool is full: then the oldest segment goes. Nothing is created on
disk before the first record. Thread-safe; no lock of the trainer's threads is ever waited for.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tailwatch_collectors import segment
from tailwatch_collectors.segment import Record
from tailwatch_collectors.shelf import Entry, Shelf, label_of

SEGMENT_BYTES = 16 * 2**20
"""Size at which a segment is ended; an eighth of the spool where that is less."""

CLOSE_PATIENCE = 0.2
"""Longest wait of `close` for whoever is at the disk, seconds."""

Fsync = Literal["always", "interval", "never"]
"""After every record; about every second; when the system likes."""


class TooLargeError(ValueError):
    """A record larger than the whole spool."""


class Spool:
    """Records on disk: this process's own, and those of dead ones it has adopted."""

    def __init__(self, root: Path, *, nbytes: int, fsync: Fsync, run: Mapping[str, Any], url: str | None) -> None:
        self.root = root
        self.full_dropped = 0
        """Own records dropped because the spool was full."""
        self.damage_dropped = 0
        """Own records lost to damage on disk."""
        self.adopted_dropped = 0
        """Records of dead processes dropped because the spool was full."""
        self.redundant: set[int] = set()
        """Numbers of own records that the service has acknowledged otherwise: they were under way when they were
        written. They are sent again, as duplicates, and counted once."""
        self._limit = nbytes
        self._segment_bytes = max(min(SEGMENT_BYTES, nbytes // 8), 1)
        self._fsync: Fsync = fsync
        self._run = dict(run)
        self._url = url
        self._own: Shelf | None = None
        self._adopted: list[Shelf] = []
        self._gone_damaged = 0
        self._left = 0
        self._lock = threading.Lock()

    # --- what is in here -----------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Own records that wait and are not accounted for otherwise."""
        own = self._own
        return (self._left if own is None else own.pending) - len(self.redundant)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, adopted ones included."""
        return sum(shelf.nbytes for shelf in self._shelves())

    @property
    def damaged(self) -> int:
        """Places at which something stood that was no record: a torn tail, flipped bytes."""
        return self._gone_damaged + sum(shelf.damaged for shelf in self._shelves())

    def _shelves(self) -> list[Shelf]:
        """Oldest first."""
        own = self._own
        return [*self._adopted, *([] if own is None else [own])]

    # --- writing -------------------------------------------------------------------------------------------------

    def append(self, record: Record) -> None:
        """Append a record, dropping the oldest segments where there is no room.

        Raises:
            OSError: the disk is full or gone; nothing was appended.
            TooLargeError: larger than the whole spool.
        """
        packed = segment.pack(record)
        if len(packed) + len(segment.HEADER) > self._limit:
            raise TooLargeError(f"a record of {len(packed)} bytes is larger than the spool of {self._limit}")
        with self._lock:
            if self._own is not None and not self._own.path.is_dir():
                self._forget_own()
            if self._own is None:
                self._own = Shelf.create(self.root, self._name(), {**self._run, "url": self._url})
            while self.nbytes + len(packed) + len(segment.HEADER) > self._limit:
                self._drop_oldest()
            self._own.append(packed, segment_bytes=self._segment_bytes)
            if self._fsync == "always":
                self._own.sync()

    def sync(self) -> None:
        """Make what was appended survive the machine, unless the policy is never.

        Raises:
            OSError: the disk refuses.
        """
        if self._fsync != "never":
            with self._lock:
                if self._own is not None:
                    self._own.sync()

    def _forget_own(self) -> None:
        """Somebody deleted our directory: what was there is lost, and counted."""
        if self._own is not None:
            self.damage_dropped += self.pending
            self.redundant.clear()
            self._own.abandon()
            self._own = None

    def _drop_oldest(self) -> None:
        shelf = next(shelf for shelf in self._shelves() if not shelf.empty)
        lost = shelf.drop_oldest()
        if shelf.owned:
            self.full_dropped += lost
        else:
            self.adopted_dropped += lost

    def _name(self) -> str:
        """A name after all that are there: the order of shelves, whatever any clock says."""
        numbers = [int(path.name.partition("-")[0]) for path in _listed(self.root)]
        return f"{max(numbers, default=0) + 1:08d}-{uuid.uuid4().hex[:12]}"

    # --- reading -------------------------------------------------------------------------------------------------

    def head(self) -> Entry | None:
        """The oldest record that waits, those of dead processes first; it stays until it is settled."""
        with self._lock:
            for shelf in self._shelves():
                entry, lost = shelf.head()
                self.damage_dropped += lost
                if entry is not None:
                    return entry
                if not shelf.owned:
                    self._adopted.remove(shelf)
                    self._gone_damaged += shelf.damaged
                    shelf.close()
        return None

    def settle(self, entry: Entry) -> bool:
        """The record was acknowledged, or refused for good; False where it was dropped, or let go, meanwhile."""
        with self._lock:
            return entry.shelf.settle(entry)

    def adopt(self, *, any_service: bool = False) -> int:
        """Take over the shelves of dead processes that were meant for the same service (or any); how many.

        Only as far as the bound on the size allows: another process, or a later call, takes the rest.
        """
        taken = 0
        with self._lock:
            held = {shelf.path for shelf in self._shelves()}
            for path in _listed(self.root):
                meant = any_service or label_of(path).get("url") in {self._url, None}
                if path in held or not meant:
                    continue
                shelf = Shelf.adopt(path)
                if shelf is None:
                    continue
                if shelf.nbytes and self.nbytes + shelf.nbytes > self._limit:
                    shelf.abandon()
                    continue
                self._adopted.append(shelf)
                taken += 1
        return taken

    def earlier_runs(self) -> list[dict[str, Any]]:
        """Other launches of this run that left something here, oldest first, whoever replays it.

        They are to be made known to the service before this launch is, so that its attempts keep their order.
        """
        found: dict[str, dict[str, Any]] = {}
        for path in _listed(self.root):
            label = label_of(path)
            label.pop("url", None)
            names = (label.get("project"), label.get("name"))
            session = label.get("session")
            if names == (self._run.get("project"), self._run.get("name")) and session != self._run.get("session"):
                found.setdefault(str(session), label)
        return list(found.values())

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything: what is left waits for the next process. Shelves that are empty are removed.

        Where a disk that hangs holds somebody in here, nothing is done: the end of the process does as well.
        """
        if not self._lock.acquire(timeout=CLOSE_PATIENCE):
            return
        try:
            for shelf in self._shelves():
                self.damage_dropped += shelf.head()[1]  # reads past what is settled, so that an empty shelf is known
                self._gone_damaged += shelf.damaged
                shelf.close()
            self._left = 0 if self._own is None else self._own.pending
            self._adopted.clear()
            self._own = None
        finally:
            self._lock.release()

    def abandon(self) -> None:
        """In a forked child: close what remains the parent's, without a lock that a thread of it may have held."""
        for shelf in self._shelves():
            shelf.abandon()


def _listed(root: Path) -> list[Path]:
    """The shelves below a directory, oldest first; none where it does not exist."""
    try:
        names = sorted(path for path in root.iterdir() if path.name.partition("-")[0].isdecimal())
    except OSError:
        return []
    return [path for path in names if path.is_dir()]
