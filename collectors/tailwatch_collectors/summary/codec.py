"""Summary <-> bytes, version 1 (docs/summary-format.md).

`TWS` + version, then one zstd frame of named sections: name, type, the array's length along each axis, and its
little-endian values byte plane by byte plane (which zstd halves again); grid keys as differences, names as one JSON
list. A newer writer of the version may add sections, slices, and entries at the end of a vector: a reader keeps
slices it does not know and leaves the rest out. Reading checks every shape, order and sign: summaries come from
other machines.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.check import SummaryError, check, field_names, leaves
from tailwatch_collectors.summary.grid import Grid
from tailwatch_collectors.summary.slices import BucketStats, Slice
from tailwatch_collectors.summary.summary import Summary

_MAGIC = b"TWS"
_MAX_DECODED_BYTES = 16 * 2**20
_MAX_SECTIONS = 4_096
_ZSTD_LEVEL = 1
"""Level 3 costs twice the time for 1 % of the bytes."""
_TYPES = {b"f": "<f4", b"d": "<f8", b"i": "<i4", b"q": "<i8", b"s": "<u1"}
_CODES = {np.dtype(kind): code for code, kind in _TYPES.items()}
_VARIABLE = ("grid", "octaves", "worst_upper", "worst_lower", "sample")
"""Parts whose arrays have any length along their first axis."""

_Sections = dict[str, Any]


def to_bytes(summary: Summary) -> bytes:
    """The summary's serialised form; equal summaries give equal bytes."""
    sections: list[bytes] = []
    for path, value in leaves(summary):
        if isinstance(value, tuple):
            array = np.frombuffer(json.dumps(value).encode(), np.uint8)
        else:
            array = np.diff(value, prepend=0) if path.endswith(".keys") else value
        name = path[len("summary.") :].encode()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        kind = struct.pack(f"<cB{little.ndim}I", _CODES[little.dtype], little.ndim, *little.shape)
        sections += (bytes((len(name),)), name, kind, _planes(little.tobytes(), little.itemsize))
    payload = b"".join(sections)
    frame: bytes = pa.Codec("zstd", compression_level=_ZSTD_LEVEL).compress(payload, asbytes=True)
    return _MAGIC + struct.pack("<BI", schema.SUMMARY_VERSION, len(payload)) + frame


def from_bytes(data: bytes) -> Summary:
    """Read a serialised summary.

    Raises:
        SummaryError: not a summary, another version, truncated, or values no summary can hold.
    """
    if data[:3] != _MAGIC or len(data) < 8:
        raise SummaryError(FieldError(reason="is not a Tailwatch summary"))
    version, size = struct.unpack_from("<BI", data, 3)
    if version != schema.SUMMARY_VERSION:
        reason = f"summary version {version} is not supported; this reader knows {schema.SUMMARY_VERSION}"
        raise SummaryError(FieldError(reason=reason))
    if size > _MAX_DECODED_BYTES:
        raise SummaryError(FieldError(reason=f"decodes to {size} bytes, limit {_MAX_DECODED_BYTES}"))
    try:
        payload = pa.Codec("zstd").decompress(data[8:], decompressed_size=size, asbytes=True)
        sections = _sections(payload)
        summary: Summary = _build(_template(), sections, "")
    except (pa.ArrowException, OSError, struct.error, ValueError, RecursionError) as error:
        if isinstance(error, SummaryError):
            raise
        raise SummaryError(FieldError(reason=f"is damaged: {error!s:.200}")) from error
    check(summary)
    return summary


def _sections(payload: bytes) -> _Sections:
    """Every section by name."""
    found: _Sections = {}
    at = 0
    while at < len(payload):
        length = payload[at]
        name = payload[at + 1 : at + 1 + length].decode()
        code, ndim = struct.unpack_from("<cB", payload, at + 1 + length)
        at += 3 + length
        if code not in _TYPES or ndim > 2 or name in found or len(found) >= _MAX_SECTIONS:
            raise SummaryError(FieldError(column=f"{name:.80}", reason="is damaged"))
        shape = struct.unpack_from(f"<{ndim}I", payload, at)
        at += 4 * ndim
        dtype = np.dtype(_TYPES[code])
        count = math.prod(shape)
        size = count * dtype.itemsize
        if at + size > len(payload):
            raise SummaryError(FieldError(column=f"{name:.80}", reason="is truncated"))
        planes = np.frombuffer(payload, np.uint8, size, at).reshape(dtype.itemsize, count)
        array = planes.T.copy("C").view(dtype).reshape(shape)
        found[name] = array.astype(dtype.newbyteorder("="), copy=False)
        at += size
    return found


def _build(template: Any, sections: _Sections, prefix: str) -> Any:
    """The template's dataclass, filled from the sections under `prefix`."""
    values: dict[str, Any] = {}
    for name in field_names(type(template)):
        shape_of = getattr(template, name)
        where = prefix + name
        if isinstance(shape_of, np.ndarray):
            array = _fitted(_taken(sections, where, shape_of.dtype), shape_of, where)
            values[name] = np.cumsum(array) if name == "keys" else array
        elif isinstance(shape_of, Mapping):
            values[name] = _slices(sections, f"{where}.")
        elif isinstance(shape_of, tuple):
            values[name] = _names(_taken(sections, where, np.dtype(np.uint8)).tobytes(), where)
        elif isinstance(shape_of, int):
            values[name] = int(_fitted(_taken(sections, where, np.dtype(np.int64)), np.array(0), where))
        else:
            values[name] = _build(shape_of, sections, f"{where}.")
    return type(template)(**values)


@lru_cache(maxsize=1)
def _template() -> Summary:
    """What shapes and types are read from."""
    return Summary.empty()


def _slices(sections: _Sections, prefix: str) -> dict[str, Slice]:
    """Every slice there is, known or not."""
    names = sorted({name.removeprefix(prefix).partition(".")[0] for name in sections if name.startswith(prefix)})
    found = {}
    for name in names[: schema.MAX_SLICES + 1]:
        labels = _names(
            _taken(sections, f"{prefix}{name}.labels", np.dtype(np.uint8)).tobytes(), f"{prefix}{name}.labels"
        )
        if len(labels) > schema.MAX_SLICE_BUCKETS + 1:
            raise SummaryError(FieldError(column=f"{prefix}{name:.40}", reason=f"has {len(labels)} buckets"))
        template = Slice(labels, 1, BucketStats.empty(len(labels)), Grid.empty())
        found[name] = _build(template, sections, f"{prefix}{name}.")
    return found


def _taken(sections: _Sections, where: str, dtype: np.dtype[Any]) -> Any:
    if where not in sections:
        raise SummaryError(FieldError(column=where, reason="is missing"))
    array = sections[where]
    if array.dtype != dtype:
        raise SummaryError(FieldError(column=where, reason=f"holds {array.dtype}, expected {dtype}"))
    return array


def _fitted(array: Any, template: Any, where: str) -> Any:
    """The entries this version knows: a newer writer may have more at the end of each axis."""
    if array.shape == template.shape:
        return array
    variable = any(part in _VARIABLE or part.endswith("_grid") for part in where.split("."))
    known = tuple(
        have if variable and axis == 0 else want
        for axis, (have, want) in enumerate(zip(array.shape, template.shape, strict=False))
    )
    if array.ndim != template.ndim or any(have < want for have, want in zip(array.shape, known, strict=True)):
        raise SummaryError(FieldError(column=where, reason=f"has shape {array.shape}, expected {template.shape}"))
    return np.ascontiguousarray(array[tuple(slice(want) for want in known)]) if array.ndim else array


def _planes(data: bytes, itemsize: int) -> bytes:
    if itemsize == 1:
        return data
    planes: bytes = np.frombuffer(data, np.uint8).reshape(-1, itemsize).T.tobytes()
    return planes


def _names(data: bytes, where: str) -> tuple[str, ...]:
    names = json.loads(data)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SummaryError(FieldError(column=where, reason="is not a list of names"))
    "".join(names).encode()  # JSON can spell halves of a character, which no text holds
    return tuple(names)
