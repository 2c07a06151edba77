"""Segment: the format of one file of the spool, an append-only run of checksummed, length-prefixed records.

    file    = header, record, record, ...
    header  = b"TWSPOOL" and the version, one byte
    record  = b"TWR\\xa7", u32 length, u32 crc32 of the payload, u32 crc32 of the 12 bytes before, payload
    payload = u32 length of the head, head (JSON: run, route, key, seq), body

The header's own checksum makes a length trustworthy, so a payload that was damaged is stepped over exactly; where the
header itself is damaged the next record is found by its marker. Nothing here raises for what stands in a file.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1
HEADER = b"TWSPOOL" + bytes([VERSION])
MARKER = b"TWR\xa7"

_RECORD = struct.Struct("<4sIII")
_CHECKED = _RECORD.size - 4
_HEAD = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One item as it stands in the spool: all that is needed to send it, whoever does."""

    run: Mapping[str, Any]
    """What creates or finds its run: project, name, session, ..."""
    route: str
    """Path below the run: batches, summaries, scalars or events."""
    key: Mapping[str, Any]
    """What makes it idempotent, settled when it was recorded: the batch's key, or `idempotency_key`."""
    seq: int
    """Number within the process that recorded it: the order of recording, whatever any clock says."""
    body: bytes
    """What is posted."""


@dataclass(frozen=True, slots=True)
class Found:
    """A sound record and where it ends."""

    record: Record
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record."""

    start: int
    end: int


def pack(record: Record) -> bytes:
    """A record as it is appended.

    Raises:
        TypeError, ValueError: its head cannot be written as JSON.
        OverflowError: it is larger than 4 GiB.
    """
    head = json.dumps({"run": record.run, "route": record.route, "key": record.key, "seq": record.seq}).encode()
    opening = _HEAD.pack(len(head)) + head
    size = len(opening) + len(record.body)
    if size >= 2**32:
        raise OverflowError(f"a record of {size} bytes is larger than 4 GiB")
    # The body is copied once: it may be megabytes, and a copy holds the interpreter lock.
    checksum = zlib.crc32(record.body, zlib.crc32(opening))
    checked = _RECORD.pack(MARKER, size, checksum, 0)[:_CHECKED]
    return b"".join((checked, struct.pack("<I", zlib.crc32(checked)), opening, record.body))


def scan(data: bytes, start: int = 0) -> Iterator[Found | Damage]:
    """Every sound record from `start` on, in order, and every stretch that is none.

    A record after a damaged one is never lost: what follows is found by length where the header is sound, else by the
    next marker that opens a sound header.
    """
    at = start
    if start == 0 and data[: len(HEADER)] == HEADER:
        at = len(HEADER)
    damaged: int | None = None
    while at < len(data):
        length = _length(data, at)
        end = at + _RECORD.size + (length or 0)
        record = None if length is None or end > len(data) else _read(data, at, end)
        if record is None:
            damaged = at if damaged is None else damaged
            # By length only where that leads to a record or the end: bytes may be missing, not only flipped.
            exact = length is not None and (end == len(data) or _length(data, end) is not None)
            at = end if exact else _next_marker(data, at + 1)
            continue
        if damaged is not None:
            yield Damage(damaged, at)
            damaged = None
        yield Found(record, end)
        at = end
    if damaged is not None:
        yield Damage(damaged, len(data))


def _length(data: bytes, at: int) -> int | None:
    """Length of the payload that a sound header at `at` announces; None where there is none."""
    if at + _RECORD.size > len(data):
        return None
    marker, length, _, checksum = _RECORD.unpack_from(data, at)
    if marker != MARKER or zlib.crc32(data[at : at + _CHECKED]) != checksum:
        return None
    return int(length)


def _read(data: bytes, at: int, end: int) -> Record | None:
    payload = memoryview(data)[at + _RECORD.size : end]
    if zlib.crc32(payload) != _RECORD.unpack_from(data, at)[2] or len(payload) < _HEAD.size:
        return None
    split = _HEAD.size + int(_HEAD.unpack_from(payload)[0])
    try:
        head = json.loads(bytes(payload[_HEAD.size : split]))
        return Record(
            run=dict(head["run"]),
            route=str(head["route"]),
            key=dict(head["key"]),
            seq=int(head["seq"]),
            body=bytes(payload[split:]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # sound bytes of another program or version: as good as damaged


def _next_marker(data: bytes, at: int) -> int:
    found = data.find(MARKER, at)
    return len(data) if found < 0 else found
