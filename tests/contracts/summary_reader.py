"""A second reader and writer of summary bytes, from docs/summary-format.md alone: plain Python, nothing of ours."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SIZES = {"f": 4, "d": 8, "i": 4, "q": 8, "s": 1}


@dataclass
class Section:
    """One named array."""

    kind: str
    shape: tuple[int, ...]
    values: list[Any]

    @property
    def names(self) -> list[str]:
        """The texts of a section of type `s`."""
        found: list[str] = json.loads(bytes(self.values))
        return found


def read(data: bytes) -> dict[str, Section]:
    """Every section, in order."""
    magic, version, size = struct.unpack_from("<3sBI", data)
    assert (magic, version) == (b"TWS", 1)
    payload = bytes(pa.Codec("zstd").decompress(data[8:], decompressed_size=size, asbytes=True))
    found, at = {}, 0
    while at < len(payload):
        length = payload[at]
        name = payload[at + 1 : at + 1 + length].decode("utf-8")
        at += 1 + length
        kind, axes = chr(payload[at]), payload[at + 1]
        shape = struct.unpack_from(f"<{axes}I", payload, at + 2)
        at += 2 + 4 * axes
        count, width = math.prod(shape), SIZES[kind]
        planes = [payload[at + plane * count : at + (plane + 1) * count] for plane in range(width)]
        at += count * width
        code = "B" if kind == "s" else kind
        values = [struct.unpack("<" + code, bytes(plane[i] for plane in planes))[0] for i in range(count)]
        if name.endswith(".keys"):
            for i in range(1, count):
                values[i] += values[i - 1]
        found[name] = Section(kind, shape, values)
    return found


def write(sections: dict[str, Section]) -> bytes:
    """The bytes of sections, in their order."""
    parts = []
    for name, section in sections.items():
        values = section.values
        if name.endswith(".keys"):
            values = [value - before for value, before in zip(values, [0, *values], strict=False)]
        code = "B" if section.kind == "s" else section.kind
        flat = b"".join(struct.pack("<" + code, value) for value in values)
        width = SIZES[section.kind]
        planes = b"".join(flat[plane::width] for plane in range(width))
        head = struct.pack(f"<BB{len(section.shape)}I", ord(section.kind), len(section.shape), *section.shape)
        spelt = name.encode()
        parts.append(bytes((len(spelt),)) + spelt + head + planes)
    payload = b"".join(parts)
    return b"TWS\1" + struct.pack("<I", len(payload)) + bytes(pa.Codec("zstd").compress(payload, asbytes=True))
