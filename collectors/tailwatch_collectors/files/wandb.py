"""Weights & Biases: an exported history as CSV, JSON, JSON lines or Parquet, or a `.wandb` file of an offline run.

Names are kept; the export of a panel writes `run - metric`, of which the metric is kept if all columns name one run.
A `.wandb` file is a log of protobuf records in blocks of 32 KiB (LevelDB's log format); its history records are read.
"""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailwatch_collectors.files import jsonl, protobuf
from tailwatch_collectors.files.scalars import Point, PointProblem

STEP_NAMES = ("_step", "Step", "step", "global_step", "train/global_step")
"""Names of the step in an export, in this order."""

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_OWN = ("_step", "_runtime", "_timestamp", "_wandb")
_DERIVED = ("__MIN", "__MAX")


def read(path: Path, *, step_name: str | None = None) -> Iterator[Point | PointProblem]:
    """The numbers of an export, by the ending of its name.

    Args:
        path: `.csv`, `.json`, `.jsonl`, `.parquet` or `.wandb`, or the directory of an offline run.
        step_name: name of the step; default: the first of `STEP_NAMES` that is there.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.wandb"))), path)
    ending = path.suffix.lower()
    if ending == ".csv":
        found = _csv(path, step_name)
    elif ending == ".parquet":
        found = _parquet(path, step_name)
    elif ending == ".wandb":
        found = _offline(path, step_name)
    elif ending in {".json", ".jsonl", ".ndjson"}:
        found = jsonl.read(path, step_name=step_name or None)
    else:
        found = iter([PointProblem(f"{path}: {ending or 'no ending'} is none of .csv .json .jsonl .parquet .wandb")])
    for one in found:
        if not isinstance(one, Point) or not one.name.startswith(_OWN):
            yield one


def _csv(path: Path, step_name: str | None) -> Iterator[Point | PointProblem]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file, strict=True)
        try:
            names = _columns(list(lines.fieldnames or []))
            step_column = _step_column(list(lines.fieldnames or []), step_name)
            if step_column is None:
                yield PointProblem(f"{path}: no column of steps ({', '.join(STEP_NAMES)}); name it with --step-key")
                return
            for line in lines:
                yield from _record(line, step_column, names, f"line {lines.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            yield PointProblem(f"{path}: line {lines.line_num + 1} cannot be read: {error!s:.120}")


def _parquet(path: Path, step_name: str | None) -> Iterator[Point | PointProblem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            step_column = _step_column(columns, step_name)
            if step_column is None:
                yield PointProblem(f"{path}: no column of steps ({', '.join(STEP_NAMES)}); name it with --step-key")
                return
            names = _columns(columns)
            for batch in file.iter_batches():
                for index, record in enumerate(batch.to_pylist()):
                    yield from _record(record, step_column, names, f"row {index}")
    except pa.ArrowException as error:
        yield PointProblem(f"{path}: is not Parquet: {str(error).partition(chr(10))[0]:.160}")


def _record(
    record: dict[str, Any], step_column: str, names: dict[str, str], place: str
) -> Iterator[Point | PointProblem]:
    step = jsonl.whole(_parsed(record.get(step_column)))
    if step is None:
        yield PointProblem(f"{place} has no step: {step_column} is {record.get(step_column)!r:.40}")
        return
    for column, name in names.items():
        value = jsonl.number(_parsed(record.get(column)))
        if column != step_column and value is not None:
            yield Point(step, name, value)


def _parsed(value: Any) -> Any:
    """A cell as a number where it is one; an empty cell is none."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return {"true": True, "false": False}.get(value.strip().lower())


def _step_column(columns: list[str], step_name: str | None) -> str | None:
    names = STEP_NAMES if step_name is None else (step_name,)
    return next((name for name in names if name in columns), None)


def _columns(columns: list[str]) -> dict[str, str]:
    """Column and metric name; the minima and maxima that a panel adds beside each are left out."""
    kept = [column for column in columns if column and not column.endswith(_DERIVED)]
    split = {column: column.partition(" - ") for column in kept}
    runs = {head for head, dash, _ in split.values() if dash}
    return {column: tail if dash and len(runs) == 1 else column for column, (_, dash, tail) in split.items()}


def _offline(path: Path, step_name: str | None) -> Iterator[Point | PointProblem]:
    """History records of a `.wandb` file (wandb_internal.proto: Record 2 history; HistoryRecord 1 item, 2 step)."""
    for data in _log(path):
        if isinstance(data, PointProblem):
            yield data
            continue
        try:
            for number, _, value in protobuf.fields(data):
                if number == 2:
                    yield from _history(protobuf.message(value), step_name)
        except ValueError as error:
            yield PointProblem(f"{path}: a record cannot be read: {error!s:.120}")


def _history(history: bytes, step_name: str | None) -> Iterator[Point | PointProblem]:
    values: dict[str, Any] = {}
    for number, _, content in protobuf.fields(history):
        if number == 1:
            name, value = _item(protobuf.message(content))
            values[name] = value
        elif number == 2:
            numbers = [value for field, _, value in protobuf.fields(protobuf.message(content)) if field == 1]
            values.setdefault("_step", protobuf.signed(numbers[0]) if numbers else 0)
    yield from jsonl.points(values, place="a history record", step_name=step_name or "_step")


def _item(item: bytes) -> tuple[str, Any]:
    """HistoryItem: 1 key, 2 nested_key, 16 value_json; 4 boolean, 5 integer, 6 number."""
    names: list[str] = []
    value: Any = None
    for number, _, content in protobuf.fields(item):
        if number in {1, 2}:
            names.append(protobuf.text(content))
        elif number == 16:
            value = json.loads(protobuf.message(content))
        elif number in {4, 5}:
            value = protobuf.signed(content)
        elif number == 6:
            value = protobuf.floats(content, "d")[0]
    return "/".join(names), value


def _log(path: Path) -> Iterator[bytes | PointProblem]:
    """The records of a log: fragments of (checksum, length, kind) and data, none across a block's edge."""
    data = path.read_bytes()
    if data[:4] != b":W&B" or len(data) < 7:
        yield PointProblem(f"{path}: is not a .wandb file")
        return
    at, held = 7, b""
    while at + _HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        check, length, kind = _HEADER.unpack_from(data, at)
        start, at = at, at + _HEADER.size + length
        if kind not in {_FULL, _FIRST, _MIDDLE, _LAST}:
            yield PointProblem(f"{path}: at byte {start}: no record begins here; the rest is not read")
            return
        if at > len(data):
            break
        piece = data[start + _HEADER.size : at]
        if zlib.crc32(bytes([kind]) + piece) != check:
            yield PointProblem(f"{path}: at byte {start}: a record fails its checksum")
            held = b""
            continue
        held = piece if kind in {_FULL, _FIRST} else held + piece
        if kind in {_FULL, _LAST}:
            yield held
            held = b""
    if at > len(data) or len(data) - at:
        yield PointProblem(f"{path}: the last record is torn")
