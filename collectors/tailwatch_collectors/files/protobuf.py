"""Just enough of the protobuf wire format to read records whose fields are known by number."""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = int | bytes
"""A varint, or the bytes of anything else: a message, a text, packed numbers, 4 or 8 fixed bytes."""


def fields(message: bytes) -> Iterator[tuple[int, int, Value]]:
    """Field number, wire type and value of every field of a message, in order.

    Raises:
        ValueError: these bytes are no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"field {number} runs beyond the end at byte {at}")
        yield number, kind, message[at : at + size]
        at += size


def signed(value: Value) -> int:
    """A varint as int64.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int):
        raise ValueError("expected a varint")  # noqa: TRY004  # wrong bytes, not a wrong call
    return value - 2**64 if value >= 2**63 else value


def text(value: Value) -> str:
    """A text field.

    Raises:
        ValueError: it is none, or not UTF-8.
    """
    return message(value).decode()


def message(value: Value) -> bytes:
    """The bytes of a field.

    Raises:
        ValueError: it is a varint.
    """
    if not isinstance(value, bytes):
        raise ValueError("expected bytes")  # noqa: TRY004  # wrong bytes, not a wrong call
    return value


def floats(value: Value, kind: str) -> list[float]:
    """Packed or fixed little-endian numbers; `kind` as in struct: f, d, i, q.

    Raises:
        ValueError: the bytes are not a whole number of them.
    """
    data = message(value)
    size = struct.calcsize(f"<{kind}")
    if len(data) % size:
        raise ValueError(f"{len(data)} bytes are no numbers of {size}")
    return [float(one) for one in struct.unpack(f"<{len(data) // size}{kind}", data)]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"no varint at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7
