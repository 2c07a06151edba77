"""Shelf: one process's directory within the spool, locked for as long as somebody works on it.

    lock          flocked by the one process that may write or replay; JSON: the run, and the service it is meant for
    00000001.seg  segments, in order (`segment.py`)
    cursor        how far the records have been acknowledged: segment, offset, checksum

A process that dies leaves its lock free, whatever killed it, and the next one may adopt the shelf. Not thread-safe:
`spool.py` holds the lock around all of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwatch_collectors import segment
from tailwatch_collectors.segment import Found, Record

try:
    import fcntl
except ImportError:  # Windows has no flock: a spool there is never adopted while its file is open
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
CURSOR = "cursor"
SUFFIX = ".seg"

_CURSOR = struct.Struct("<QQI")


@dataclass(slots=True)
class _Segment:
    """One file of the shelf."""

    number: int
    path: Path
    size: int
    records: int | None
    """Records appended to it; None where it was found and is not read yet."""
    settled: int = 0
    """Records of it that need not be sent any more."""


@dataclass(slots=True, eq=False)
class Entry:
    """A record that waits on a shelf."""

    shelf: Shelf
    segment: int
    end: int
    """Where it ends within the segment."""
    record: Record
    tries: int = 0
    """Times it was sent without a readable answer."""
    recreated: bool = False
    """Whether its run was created anew for it."""


class Shelf:
    """One directory of segments: appended to by its owner, read from the oldest."""

    def __init__(self, path: Path, lock: int, *, owned: bool) -> None:
        self.path = path
        self.owned = owned
        """Made by this process, not adopted."""
        self.damaged = 0
        """Stretches of bytes that were no record."""
        self._lock: int | None = lock
        self._file: int | None = None
        self._cursor: int | None = None
        self._dirty = False
        self._segments: list[_Segment] = []
        self._next = 1
        self._head: Entry | None = None
        self._reading: tuple[int, Iterator[Found | segment.Damage]] | None = None

    @classmethod
    def create(cls, root: Path, name: str, label: Mapping[str, Any]) -> Shelf:
        """Make a shelf of one's own.

        Raises:
            OSError: the directory cannot be written.
        """
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Locked before it has its name: else another process could take it for an orphan.
        made = root / f".{name}"
        made.mkdir(mode=0o700)
        lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(lock, json.dumps(dict(label)).encode())
            _flock(lock)
            made.rename(root / name)
        except OSError:
            os.close(lock)
            raise
        return cls(root / name, lock, owned=True)

    @classmethod
    def adopt(cls, path: Path) -> Shelf | None:
        """Take over a shelf whose owner is gone; None where somebody works on it, or it is gone too."""
        try:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            mine = _flock(lock) and (path / LOCK).stat().st_ino == os.fstat(lock).st_ino
        except OSError:
            mine = False
        if not mine:
            os.close(lock)
            return None
        shelf = cls(path, lock, owned=False)
        try:
            shelf._find()
        except OSError:
            os.close(lock)
            return None
        return shelf

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(part.size for part in self._segments)

    @property
    def pending(self) -> int:
        """Records that wait here, as far as they are counted."""
        return sum((part.records or 0) - part.settled for part in self._segments)

    @property
    def empty(self) -> bool:
        """True where nothing is left to be read."""
        return not self._segments

    # --- writing -------------------------------------------------------------------------------------------------

    def append(self, packed: bytes, *, segment_bytes: int) -> None:
        """Append one packed record, to a new segment where the last one is full.

        Raises:
            OSError: it could not be written whole; the segment is as it was before.
        """
        file, last = self._file, self._segments[-1] if self._segments else None
        if file is None or last is None or last.size + len(packed) > segment_bytes:
            file, last = self._open()
        try:
            _write(file, packed)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, last.size)
            self.roll()  # what could not be cut off is a torn tail, and nothing is written after it
            raise
        last.size += len(packed)
        last.records = (last.records or 0) + 1
        self._dirty = True

    def roll(self) -> None:
        """End the segment being written; the next record begins another."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def sync(self) -> None:
        """Make what was appended survive the machine.

        Raises:
            OSError: the disk refuses.
        """
        if self._dirty and self._file is not None:
            os.fsync(self._file)
        self._dirty = False

    def _open(self) -> tuple[int, _Segment]:
        self.sync()
        self.roll()
        path = self.path / f"{self._next:08d}{SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(file, segment.HEADER)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._file = file
        made = _Segment(self._next, path, len(segment.HEADER), 0)
        self._next += 1
        self._segments.append(made)
        return file, made

    # --- reading -------------------------------------------------------------------------------------------------

    def head(self) -> tuple[Entry | None, int]:
        """The oldest record that waits, and how many of this shelf's own records turned out to be lost to damage."""
        lost = 0
        while self._head is None and self._segments:
            first = self._segments[0]
            if self._reading is None:
                if self._file is not None and first is self._segments[-1]:
                    self.roll()
                self._reading = (first.number, self._records(first))
            found = next(self._reading[1], None)
            if found is None:
                # What damage took was counted when it was appended.
                lost += max((first.records or 0) - first.settled, 0) if self.owned else 0
                self._remove(first)
            elif isinstance(found, Found):
                self._head = Entry(self, first.number, found.end, found.record)
                if not self.owned:
                    first.records = (first.records or 0) + 1
            else:
                self.damaged += 1
        return self._head, lost

    def settle(self, entry: Entry) -> bool:
        """The record need not be sent any more; False where it was dropped meanwhile."""
        if self._head is not entry:
            return False
        self._head = None
        first = self._segments[0]
        first.settled += 1
        with contextlib.suppress(OSError):  # it would be sent again, and be a duplicate
            self._write_cursor(first.number, entry.end)
        return True

    def drop_oldest(self) -> int:
        """Remove the oldest segment; how many records went with it."""
        first = self._segments[0]
        if first is self._segments[-1]:
            self.roll()
        known = first.records
        if known is None or not self.owned:
            known = first.settled + sum(isinstance(found, Found) for found in self._records(first))
        lost = known - first.settled
        self._remove(first)
        self._head = None
        return max(lost, 0)

    def _records(self, part: _Segment) -> Iterator[Found | segment.Damage]:
        """What stands in a segment after what was acknowledged. Read whole: a segment is bounded."""
        number, offset = self._read_cursor()
        start = offset if number == part.number else 0
        try:
            data = part.path.read_bytes()
        except OSError:
            self.damaged += 1
            return iter(())
        return segment.scan(data, min(start, len(data)))

    def _remove(self, part: _Segment) -> None:
        self._reading = None
        self._segments.remove(part)
        with contextlib.suppress(OSError):  # it will be read again, and be duplicates
            part.path.unlink(missing_ok=True)

    def _find(self) -> None:
        """Look at the segments of an adopted shelf."""
        number, _ = self._read_cursor()
        for path in sorted(self.path.glob(f"*{SUFFIX}")):
            if not path.stem.isdecimal():
                continue
            found = _Segment(int(path.stem), path, path.stat().st_size, None)
            self._next = max(self._next, found.number + 1)
            if found.number >= number:
                self._segments.append(found)
            else:
                path.unlink(missing_ok=True)

    def _read_cursor(self) -> tuple[int, int]:
        try:
            data = (self.path / CURSOR).read_bytes()
            number, offset, checksum = _CURSOR.unpack(data)
        except (OSError, struct.error):
            return 0, 0
        return (number, offset) if zlib.crc32(data[:-4]) == checksum else (0, 0)

    def _write_cursor(self, number: int, offset: int) -> None:
        if self._cursor is None:
            self._cursor = os.open(self.path / CURSOR, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        plain = struct.pack("<QQ", number, offset)
        os.pwrite(self._cursor, plain + struct.pack("<I", zlib.crc32(plain)), 0)

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the shelf; removed where nothing is left on it."""
        if self.empty:
            for name in (CURSOR, LOCK):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self.abandon()

    def abandon(self) -> None:
        """Close the files, and with them the lock. In a forked child: of what remains the parent's."""
        self._head = None  # whoever still sends it settles nothing here
        self.roll()
        descriptors, self._cursor, self._lock = (self._cursor, self._lock), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def label_of(path: Path) -> dict[str, Any]:
    """What a shelf says about itself; empty where it says nothing readable."""
    try:
        found = json.loads((path / LOCK).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _flock(descriptor: int) -> bool:
    """Take the lock of a shelf; False where somebody else has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            return False
        raise
    return True


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
