"""The wire record, schema 1: Batch <-> Arrow IPC stream, and the same record as JSON.

One row per sequence; the batch's metadata are key-value pairs of the Arrow schema. Decoding trusts nothing: sizes
are checked before anything is decompressed, Arrow's own validation runs in full, and every refusal names row,
column and reason.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailwatch_collectors.batch import SEQUENCE_DTYPES, STRING_COLUMNS, TOKEN_DTYPES, Batch, check_meta
from tailwatch_collectors.errors import FieldError, WireError
from tailwatch_collectors.types import SCHEMA_VERSION, BatchMeta

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
"""Media type of an Arrow wire record."""

REQUIRED_COLUMNS = ("infer_logprobs", "train_logprobs")

Compression = Literal["zstd", "lz4"]

_ARROW_TYPES = {np.float32: pa.float32(), np.bool_: pa.bool_(), np.int32: pa.int32(), np.int16: pa.int16()}
_ARROW_TYPES |= {np.int64: pa.int64()}
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_MAX_JSON_INTEGER = 10**300
"""Larger integers do not even fit the float64 they pass through."""
_INTEGER_META = ("step", "rank", "world_size", "part", "update_index", "attempt", "train_version")


@dataclass(frozen=True, kw_only=True, slots=True)
class WireLimits:
    """What a receiver accepts. Each refusal names the limit it hit."""

    rows: int = 65_536
    """Sequences in one batch."""
    tokens: int = 16_777_216
    """Tokens in one batch."""
    sequence_tokens: int = 1_048_576
    """Tokens in one sequence."""
    decoded_bytes: int = 512 * 2**20
    """Bytes of all columns after decompression."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A wire record, read."""

    batch: Batch
    """The batch, complete and checked."""
    ignored_columns: tuple[str, ...]
    """Columns that schema 1 does not know; kept out and named in the answer."""


def encode(batch: Batch, *, compression: Compression | None = None) -> bytes:
    """The batch as an Arrow IPC stream."""
    offsets = _to_arrow(batch.offsets_B1.astype(np.int32))
    columns: dict[str, pa.Array] = {}
    for name in (*TOKEN_DTYPES, *(n for n in SEQUENCE_DTYPES if n not in TOKEN_DTYPES)):
        per_token = getattr(batch, f"{name}_N", None)
        per_sequence = getattr(batch, f"{name}_B", None)
        if per_token is not None:
            columns[name] = pa.ListArray.from_arrays(offsets, _to_arrow(per_token))
        elif per_sequence is not None:
            columns[name] = _to_arrow(per_sequence)
    for name in STRING_COLUMNS:
        values = getattr(batch, name)
        if values is not None:
            columns[name] = _strings_to_arrow(values)
    table = pa.record_batch(columns).replace_schema_metadata(_meta_to_wire(batch.meta))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(table)
    return bytes(sink.getvalue())


def decode(body: bytes | memoryview, *, limits: WireLimits | None = None) -> Decoded:
    """Read an Arrow IPC stream.

    Raises:
        WireError: not an Arrow stream, a column missing or ill-typed, lists of unequal length, metadata out of
            range, or a limit exceeded; names row, column and reason.
    """
    limits = limits or WireLimits()
    _check_sizes(body, limits)
    try:
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        names = table.column_names  # decoded here, and by older pyarrow without a check of its own
    except (pa.ArrowException, ValueError, OSError, UnicodeDecodeError) as error:
        raise WireError(FieldError(reason=f"not a readable Arrow IPC stream: {_first_line(error)}")) from error
    metadata = table.schema.metadata or {}
    meta = _meta_from_wire(metadata)
    if table.num_rows > limits.rows:
        raise WireError(FieldError(reason=f"{table.num_rows} rows, limit {limits.rows}"))
    duplicated = [name for name, count in Counter(names).items() if count > 1]
    if duplicated:
        raise WireError(*(FieldError(column=name, reason="appears more than once") for name in sorted(duplicated)))
    columns = {name: _column_from_arrow(name, table.column(name)) for name in names if _known(name)}
    ignored = tuple(name for name in names if not _known(name))
    explicit_final = metadata.get(b"final") == b"true"
    return _assemble(meta, columns, table.num_rows, limits, explicit_final=explicit_final, ignored=ignored)


def decode_json(record: Any, *, limits: WireLimits | None = None) -> Decoded:
    """Read a wire record from parsed JSON: metadata fields beside `sequences`, a list of objects.

    A `null` inside a log-prob list is a missing token.

    Raises:
        WireError: as `decode`.
    """
    limits = limits or WireLimits()
    if not isinstance(record, dict):
        raise WireError(FieldError(reason=f"expected an object, got {type(record).__name__}"))
    rows = record.get("sequences")
    if not isinstance(rows, list):
        raise WireError(FieldError(column="sequences", reason="is missing or not a list"))
    if len(rows) > limits.rows:
        raise WireError(FieldError(reason=f"{len(rows)} rows, limit {limits.rows}"))
    for row, value in enumerate(rows):
        if not isinstance(value, dict):
            raise WireError(FieldError(row=row, reason=f"expected an object, got {type(value).__name__}"))
    meta = _meta_from_json({key: value for key, value in record.items() if key != "sequences"})
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column_from_json(name, [row.get(name) for row in rows]) for name in names if _known(name)}
    ignored = tuple(name for name in names if not _known(name))
    return _assemble(meta, columns, len(rows), limits, explicit_final=record.get("final") is True, ignored=ignored)


def content_digest(batch: Batch) -> bytes:
    """SHA-256 of the decoded columns: equal for the same content however it was encoded.

    Metadata outside the key and free text of the framework are not part of the content; `final` is.
    """
    digest = hashlib.sha256()
    digest.update(struct.pack("<q?q", SCHEMA_VERSION, batch.meta.final, _or(batch.meta.train_version, -1)))
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name == "meta" or value is None:
            continue
        digest.update(field.name.encode())
        if isinstance(value, tuple):
            for text in value:
                encoded = text.encode()
                digest.update(struct.pack("<q", len(encoded)))
                digest.update(encoded)
        else:
            digest.update(struct.pack("<q", len(value)))
            digest.update(np.ascontiguousarray(_one_nan(value)).data)
    return digest.digest()


def _one_nan(values: NDArray[Any]) -> NDArray[Any]:
    """The values with every NaN written alike: its sign and payload carry nothing, and JSON cannot send them."""
    if values.dtype.kind != "f" or not np.isnan(values).any():
        return values
    return np.where(np.isnan(values), values.dtype.type(np.nan), values)


# --- columns -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ragged:
    """A list column: flat values and [B+1] offsets."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]


_Column = _Ragged | NDArray[Any] | tuple[str, ...]


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    """An array's own memory as Arrow.

    `pa.array` would import pandas wherever it is installed: most of a second inside the trainer, and an error at exit.
    """
    kind = _ARROW_TYPES[values.dtype.type]
    memory = np.packbits(values, bitorder="little") if kind == pa.bool_() else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(memory)])


def _strings_to_arrow(values: tuple[str, ...]) -> pa.Array:
    """Strings as Arrow; without `pa.array`, as `_to_arrow`."""
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )


def _known(name: str) -> bool:
    return name in TOKEN_DTYPES or name in SEQUENCE_DTYPES or name in STRING_COLUMNS


def _column_from_arrow(name: str, chunked: pa.ChunkedArray) -> _Column:
    kind = chunked.type
    if not _accepted(name, kind):
        raise WireError(FieldError(column=name, reason=f"is {kind!s:.80}, expected {_expected(name)}"))
    array = chunked.combine_chunks()
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise WireError(FieldError(row=row, column=name, reason="is null"))
    if name in STRING_COLUMNS:
        return tuple(array.to_pylist())
    if _is_list(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        return _Ragged(_flat_values(name, array, offsets), offsets - offsets[0])
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _accepted(name: str, kind: Any) -> bool:
    """Whether schema 1 has this column with this Arrow type."""
    if name in STRING_COLUMNS:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if _is_list(kind):
        return name in TOKEN_DTYPES and kind.value_type == _ARROW_TYPES[TOKEN_DTYPES[name]]
    return name in SEQUENCE_DTYPES and kind == _ARROW_TYPES[SEQUENCE_DTYPES[name]]


def _flat_values(name: str, array: Any, offsets: NDArray[np.int64]) -> NDArray[Any]:
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    if values.null_count:
        if TOKEN_DTYPES[name] is not np.float32:
            index = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) + offsets[0]
            row = int(np.searchsorted(offsets, index, side="right")) - 1
            raise WireError(FieldError(row=row, column=name, reason=f"holds null at token {index - offsets[row]}"))
        values = values.fill_null(float("nan"))  # a missing token
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _expected(name: str) -> str:
    if name in STRING_COLUMNS:
        return "string"
    types = [f"list<{_ARROW_TYPES[TOKEN_DTYPES[name]]}>"] if name in TOKEN_DTYPES else []
    types += [str(_ARROW_TYPES[SEQUENCE_DTYPES[name]])] if name in SEQUENCE_DTYPES else []
    return " or ".join(types)


def _column_from_json(name: str, values: list[Any]) -> _Column:
    for row, value in enumerate(values):
        if value is None:
            raise WireError(FieldError(row=row, column=name, reason="is missing; give it in every row or in none"))
    if name in STRING_COLUMNS:
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise WireError(FieldError(row=row, column=name, reason=f"{value!r:.80} is not a string"))
        return tuple(values)
    if name in TOKEN_DTYPES and all(isinstance(value, list) for value in values):
        dtype = TOKEN_DTYPES[name]
        rows = [_json_numbers(name, row, value, dtype) for row, value in enumerate(values)]
        offsets = np.concatenate(([0], np.cumsum([len(r) for r in rows]))).astype(np.int64)
        return _Ragged(np.concatenate(rows) if rows else np.empty(0, dtype), offsets)
    if name in SEQUENCE_DTYPES:
        for row, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WireError(FieldError(row=row, column=name, reason=f"{value!r:.80} is not a number"))
        return np.concatenate([_json_numbers(name, r, [v], SEQUENCE_DTYPES[name]) for r, v in enumerate(values)])
    row = next(row for row, value in enumerate(values) if not isinstance(value, list))
    raise WireError(FieldError(row=row, column=name, reason=f"{values[row]!r:.80} is not a list"))


def _json_numbers(name: str, row: int, values: list[Any], dtype: Any) -> NDArray[Any]:
    """One JSON list as an array; every element is checked, for JSON has no types of its own."""
    kind = np.dtype(dtype).kind
    checked: list[Any] = []
    for t, value in enumerate(values):
        reason = None
        if kind == "f" and value is None:
            checked.append(float("nan"))  # a missing token
            continue
        if kind == "b":
            reason = None if isinstance(value, bool) else "is not true or false"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            reason = "is not a number"
        elif kind == "i" and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            reason = f"does not fit {np.dtype(dtype).name}"
        elif kind == "i" and value != int(value):
            reason = "is not an integer"
        elif kind == "f" and isinstance(value, int) and abs(value) > _MAX_JSON_INTEGER:
            reason = "does not fit float32"
        if reason is not None:
            raise WireError(FieldError(row=row, column=name, reason=f"{value!r:.80} at token {t} {reason}"))
        checked.append(value)
    with np.errstate(over="ignore"):
        return np.array(checked, np.float64 if kind == "f" else dtype).astype(dtype)


def _assemble(
    meta: BatchMeta,
    columns: Mapping[str, _Column],
    rows: int,
    limits: WireLimits,
    *,
    explicit_final: bool,
    ignored: tuple[str, ...],
) -> Decoded:
    """Columns and metadata as one checked batch."""
    if rows == 0:
        if not explicit_final:
            raise WireError(FieldError(reason="no rows; an empty batch is accepted only with an explicit final"))
        columns = {name: _Ragged(np.empty(0, np.float32), np.zeros(1, np.int64)) for name in REQUIRED_COLUMNS}
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise WireError(*(FieldError(column=name, reason="is required") for name in missing))
    infer = columns["infer_logprobs"]
    if not isinstance(infer, _Ragged):
        raise WireError(FieldError(column="infer_logprobs", reason=f"expected {_expected('infer_logprobs')}"))
    lengths = np.diff(infer.offsets)
    if int(infer.offsets[-1]) > limits.tokens:
        raise WireError(FieldError(reason=f"{infer.offsets[-1]} tokens, limit {limits.tokens}"))
    if rows and int(lengths.max()) > limits.sequence_tokens:
        row = int(lengths.argmax())
        reason = f"{lengths[row]} tokens, limit {limits.sequence_tokens}"
        raise WireError(FieldError(row=row, column="infer_logprobs", reason=reason))
    built: dict[str, Any] = {"meta": meta, "offsets_B1": infer.offsets}
    for name, column in columns.items():
        if isinstance(column, _Ragged):
            unequal = np.flatnonzero(np.diff(column.offsets) != lengths)
            if len(unequal):
                row = int(unequal[0])
                reason = f"has {np.diff(column.offsets)[row]} tokens, infer_logprobs has {lengths[row]}"
                raise WireError(FieldError(row=row, column=name, reason=reason))
            built[f"{name}_N"] = np.ascontiguousarray(column.values)
        elif isinstance(column, tuple):
            built[name] = column
        else:
            built[f"{name}_B"] = column
    batch = Batch(**built)
    errors = batch.check()
    if errors:
        raise WireError(*errors)
    return Decoded(batch=batch, ignored_columns=ignored)


# --- metadata ----------------------------------------------------------------------------------------------------


def _meta_to_wire(meta: BatchMeta) -> dict[str, str]:
    wire = {"schema": str(SCHEMA_VERSION)}
    for field in fields(meta):
        value = getattr(meta, field.name)
        if value is not None:
            wire[field.name] = value if isinstance(value, str) else json.dumps(value)
    return wire


def _meta_from_wire(metadata: Mapping[bytes, bytes]) -> BatchMeta:
    try:
        texts = {key.decode(): value.decode() for key, value in metadata.items()}
    except UnicodeDecodeError as error:
        raise WireError(FieldError(reason=f"metadata are not UTF-8: {error}")) from error
    schema = texts.pop("schema", None)
    if schema != str(SCHEMA_VERSION):
        reason = f"{schema!r} is not supported; this receiver reads schema {SCHEMA_VERSION}"
        raise WireError(FieldError(column="schema", reason=reason))
    values: dict[str, Any] = dict(texts)
    for name, text in texts.items():
        if name in _INTEGER_META or name in {"recorded_at", "final"}:
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise WireError(FieldError(column=name, reason=f"{text!r:.80} is not a number or boolean")) from error
    return _meta(values)


def _meta_from_json(values: dict[str, Any]) -> BatchMeta:
    schema = values.pop("schema", SCHEMA_VERSION)
    if schema != SCHEMA_VERSION:
        reason = f"{schema!r:.80} is not supported; this receiver reads schema {SCHEMA_VERSION}"
        raise WireError(FieldError(column="schema", reason=reason))
    return _meta(values)


def _meta(values: dict[str, Any]) -> BatchMeta:
    """Metadata from decoded values; unknown keys are left out (a newer client may send more)."""
    known = {field.name for field in fields(BatchMeta)}
    given = {name: value for name, value in values.items() if name in known and value is not None}
    if "step" not in given:
        raise WireError(FieldError(column="step", reason="is required"))
    if not isinstance(given.get("final", True), bool):
        raise WireError(FieldError(column="final", reason=f"{given['final']!r:.80} is not true or false"))
    meta = BatchMeta(**given)
    errors = check_meta(meta)
    if errors:
        raise WireError(*errors)
    return meta


# --- sizes -------------------------------------------------------------------------------------------------------


def _check_sizes(body: bytes | memoryview, limits: WireLimits) -> None:
    """Refuse a stream whose buffers would decompress beyond the limit, before decompressing anything.

    A compressed Arrow buffer opens with its uncompressed length (Arrow columnar format, "Compression"); the lengths
    claimed are added up from the messages' flatbuffers.
    """
    total = 0
    if bytes(body[-8:]) != _END_OF_STREAM:
        reason = "not a whole Arrow IPC stream: the end-of-stream marker is missing (truncated?)"
        raise WireError(FieldError(reason=reason))
    try:
        for message in _messages(body):
            if message.type == "dictionary":
                raise WireError(FieldError(reason="dictionary-encoded columns are not part of schema 1"))
            if message.type == "record batch":
                total += _decoded_size(message)
            if total > limits.decoded_bytes:
                raise WireError(FieldError(reason=f"decodes to over {limits.decoded_bytes} bytes, the limit"))
    except (pa.ArrowException, ValueError, OSError, EOFError, struct.error, IndexError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(FieldError(reason=f"not a readable Arrow IPC stream: {_first_line(error)}")) from error


def _messages(body: bytes | memoryview) -> Iterator[Any]:
    yield from pa.ipc.MessageReader.open_stream(pa.py_buffer(body))


def _decoded_size(message: Any) -> int:
    """Bytes of one record batch message after decompression (Arrow's Message.fbs and RecordBatch table)."""
    flat = memoryview(message.metadata)
    record_batch = _table(flat, _slot(flat, _u32(flat, 0), 2))
    buffers = _slot(flat, record_batch, 2)
    compression = _slot(flat, record_batch, 3)
    if compression is None or buffers is None:
        return len(message.body)
    vector = buffers + _u32(flat, buffers)
    body = memoryview(message.body)
    total = 0
    for index in range(_u32(flat, vector)):
        offset, length = struct.unpack_from("<qq", flat, vector + 4 + 16 * index)
        if length == 0:
            continue
        claimed = struct.unpack_from("<q", body, offset)[0]
        total += length - 8 if claimed == -1 else claimed  # -1: this buffer was left uncompressed
        if claimed < -1:
            raise ValueError(f"buffer {index} claims {claimed} bytes")
    return total


def _u32(flat: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", flat, at)[0])


def _table(flat: memoryview, at: int | None) -> int:
    if at is None:
        raise ValueError("message without a header")
    return at + _u32(flat, at)


def _slot(flat: memoryview, table: int, field: int) -> int | None:
    """Position of a flatbuffer table's field; None where it is absent."""
    vtable = table - int(struct.unpack_from("<i", flat, table)[0])
    if 4 + 2 * field >= int(struct.unpack_from("<H", flat, vtable)[0]):
        return None
    offset = int(struct.unpack_from("<H", flat, vtable + 4 + 2 * field)[0])
    return table + offset if offset else None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
