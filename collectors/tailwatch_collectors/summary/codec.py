"""Summary <-> bytes.

`TWS` + version, then one zstd frame of sections in the order of the fields: the array's length along each axis and
its little-endian values byte plane by byte plane (which zstd halves again); grid keys as differences, names as one
JSON list. Reading checks every shape, order and
sign: summaries come from other machines.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.check import SummaryError, check, leaves
from tailwatch_collectors.summary.summary import Summary

_MAGIC = b"TWS"
_MAX_DECODED_BYTES = 16 * 2**20
_ZSTD_LEVEL = 3


def to_bytes(summary: Summary) -> bytes:
    """The summary's serialised form; equal summaries give equal bytes."""
    sections = []
    for path, value in leaves(summary):
        if isinstance(value, tuple):
            array = np.frombuffer(json.dumps(value).encode(), np.uint8)
        else:
            array = np.diff(value, prepend=0) if path.endswith(".keys") else value
        little = np.asarray(array, _stored_type(array.dtype), order="C")
        header = struct.pack(f"<B{little.ndim}I", little.ndim, *little.shape)
        sections.append(header + _planes(little.tobytes(), little.itemsize))
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
    summary: Summary
    try:
        payload = pa.Codec("zstd").decompress(data[8:], decompressed_size=size, asbytes=True)
        summary, end = _read(Summary.empty(), payload, 0, "summary")
    except (pa.ArrowException, OSError, struct.error, ValueError, RecursionError) as error:
        if isinstance(error, SummaryError):
            raise
        raise SummaryError(FieldError(reason=f"is damaged: {error!s:.200}")) from error
    if end != len(payload):
        raise SummaryError(FieldError(reason=f"{len(payload) - end} bytes are left over"))
    check(summary)
    return summary


def _read(template: Any, payload: bytes, at: int, path: str) -> tuple[Any, int]:
    """Rebuild the template's dataclass from the sections starting at `at`."""
    values = {}
    for field in fields(template):
        shape_of = getattr(template, field.name)
        where = f"{path}.{field.name}"
        if is_dataclass(shape_of):
            values[field.name], at = _read(shape_of, payload, at, where)
            continue
        dtype = np.dtype(np.uint8) if isinstance(shape_of, tuple) else shape_of.dtype
        array, at = _section(payload, at, dtype, where)
        if isinstance(shape_of, tuple):
            values[field.name] = _names(array.tobytes(), where)
            continue
        variable = "grid" in path.rpartition(".")[2] or "worst" in path
        if array.ndim != shape_of.ndim or (not variable and array.shape != shape_of.shape):
            raise SummaryError(FieldError(column=where, reason=f"has shape {array.shape}, expected {shape_of.shape}"))
        values[field.name] = np.cumsum(array) if field.name == "keys" else array
    return type(template)(**values), at


def _section(payload: bytes, at: int, dtype: np.dtype[Any], where: str) -> tuple[Any, int]:
    ndim = payload[at] if at < len(payload) else 255
    if ndim > 2:
        raise SummaryError(FieldError(column=where, reason="is missing or damaged"))
    shape = struct.unpack_from(f"<{ndim}I", payload, at + 1)
    at += 1 + 4 * ndim
    stored = _stored_type(dtype)
    count = math.prod(shape)
    if at + count * stored.itemsize > len(payload):
        raise SummaryError(FieldError(column=where, reason="is truncated"))
    size = count * stored.itemsize
    planes = np.frombuffer(payload, np.uint8, size, at).reshape(stored.itemsize, count)
    array = np.frombuffer(planes.T.tobytes(), stored).reshape(shape).astype(dtype)
    return array, at + size


def _planes(data: bytes, itemsize: int) -> bytes:
    planes: bytes = np.frombuffer(data, np.uint8).reshape(-1, itemsize).T.tobytes()
    return planes


def _names(data: bytes, where: str) -> tuple[str, ...]:
    names = json.loads(data)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SummaryError(FieldError(column=where, reason="is not a list of names"))
    return tuple(names)


def _stored_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    stored: np.dtype[Any] = dtype.newbyteorder("<")
    return stored
