"""TensorBoard: the scalars of event files, read without TensorBoard.

An event file is a row of TFRecords (length, its checksum, data, its checksum), each a protobuf `Event`. Scalars are
`simple_value`, or a tensor with one number, which newer writers prefer. Checksums of long records, which hold images
and histograms, are not verified: nothing of them is used. A torn tail, as a killed writer leaves it, ends the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tailwatch_collectors.files import protobuf
from tailwatch_collectors.files.scalars import Point, PointProblem

VERIFIED_BYTES = 4096
"""Longest record whose checksum is verified."""

_MASK = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
# DataType in TensorFlow's types.proto: what a scalar summary is written as.
_CONTENT_KINDS = {1: "f", 2: "d", 3: "i", 9: "q"}
_LIST_KINDS = {5: "f", 6: "d"}


def files(path: Path) -> list[tuple[Path, str]]:
    """The event files of a file or directory, oldest first, and the prefix of their names: the directory below it."""
    if path.is_file():
        return [(path, "")]
    found = sorted(one for one in path.rglob("*tfevents*") if one.is_file())
    prefixes = [one.parent.relative_to(path).as_posix() for one in found]
    return [(one, "" if prefix == "." else f"{prefix}/") for one, prefix in zip(found, prefixes, strict=True)]


def read(path: Path) -> Iterator[Point | PointProblem]:
    """The scalars of an event file or of all below a directory, in written order.

    Raises:
        OSError: a file cannot be read.
    """
    found = files(path)
    if not found:
        yield PointProblem(f"{path}: there is no event file (*tfevents*) below it")
    for file, prefix in found:
        for data in _records(file):
            if isinstance(data, PointProblem):
                yield data
                continue
            try:
                yield from [Point(step, prefix + tag, value) for step, tag, value in _scalars(data)]
            except (ValueError, struct.error) as error:
                yield PointProblem(f"{file}: a record is no event: {error!s:.120}")


def masked_crc32c(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def _records(path: Path) -> Iterator[bytes | PointProblem]:
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            place = f"{path}: at byte {file.tell() - len(header)}"
            if len(header) < 12:
                yield PointProblem(f"{place}: the last record is torn")
                return
            length, check = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != check:
                yield PointProblem(f"{place}: the length of a record fails its checksum; the rest is not read")
                return
            if file.tell() + length + 4 > size:
                yield PointProblem(f"{place}: the last record is torn")
                return
            data, (check,) = file.read(length), struct.unpack("<I", file.read(4))
            if length <= VERIFIED_BYTES and masked_crc32c(data) != check:
                yield PointProblem(f"{place}: a record fails its checksum")
                continue
            yield data


def _scalars(event: bytes) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of every scalar of an Event (event.proto: 2 step, 5 summary)."""
    step = 0
    summaries = []
    for number, _, value in protobuf.fields(event):
        if number == 2:
            step = protobuf.signed(value)
        elif number == 5:
            summaries.append(protobuf.message(value))
    for summary in summaries:
        for number, _, value in protobuf.fields(summary):
            if number == 1 and step >= 0:
                tag, found = _value(protobuf.message(value))
                if tag and found is not None:
                    yield step, tag, found


def _value(value: bytes) -> tuple[str | None, float | None]:
    """Tag and number of a Summary.Value (summary.proto: 1 tag, 2 simple_value, 8 tensor)."""
    tag, found = None, None
    for number, kind, content in protobuf.fields(value):
        if number == 1:
            tag = protobuf.text(content)
        elif number == 2 and kind == 5:
            found = protobuf.floats(content, "f")[0]
        elif number == 8:
            found = _tensor(protobuf.message(content))
    return tag, found


def _tensor(tensor: bytes) -> float | None:
    """The one number of a TensorProto (tensor.proto: 1 dtype, 2 shape, 4 content, 5 float_val, 6 double_val)."""
    dtype, values = 0, []
    for number, kind, content in protobuf.fields(tensor):
        if number == 1:
            dtype = protobuf.signed(content)
        elif number == 4 and dtype in _CONTENT_KINDS:
            values = protobuf.floats(content, _CONTENT_KINDS[dtype])
        elif number in _LIST_KINDS and kind in {1, 2, 5}:
            values = protobuf.floats(content, _LIST_KINDS[number])
    return values[0] if len(values) == 1 else None
