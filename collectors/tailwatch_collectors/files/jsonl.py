"""JSON lines of scalars: one object per line with a step and numbers, flat or under `data` as verl's file logger does.

Nested objects become names with `/`; what is not a number is passed over. Also reads one JSON array of such objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailwatch_collectors.files.scalars import Point, PointProblem

STEP_NAMES = ("step", "_step", "global_step", "train/global_step", "trainer/global_step", "iteration")
"""Names under which a step is looked for, in this order."""

_WORDS = {"nan": math.nan, "infinity": math.inf, "-infinity": -math.inf, "inf": math.inf, "-inf": -math.inf}


def read(path: Path, *, step_name: str | None = None) -> Iterator[Point | PointProblem]:
    """The numbers of a file, line by line.

    Args:
        path: the file.
        step_name: name of the step; default: the first of `STEP_NAMES` that is there.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(0)
        if start == b"[":
            yield from _array(file.read(), step_name)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                torn = "" if line.endswith(b"\n") else " (the last line, torn)"
                yield PointProblem(f"line {number}{torn} is not JSON: {error!s:.120}")
                continue
            yield from points(record, place=f"line {number}", step_name=step_name)


def points(record: Any, *, place: str, step_name: str | None) -> Iterator[Point | PointProblem]:
    """The numbers of one record.

    Args:
        record: a decoded object.
        place: where it stands, for messages.
        step_name: as `read`.
    """
    if not isinstance(record, Mapping):
        yield PointProblem(f"{place} is a JSON {type(record).__name__}, expected an object")
        return
    names = STEP_NAMES if step_name is None else (step_name,)
    flat = dict(_flat(record))
    used = next((name for name in names if flat.get(name) is not None), None)
    step = None if used is None else whole(flat[used])
    if step is None:
        value = None if used is None else flat[used]
        yield PointProblem(f"{place} has no step: {' or '.join(names)} is {value!r:.40}")
        return
    data = record.get("data")
    values = dict(_flat(data)) if used == "step" and isinstance(data, Mapping) else flat
    for name, value in values.items():
        found = number(value)
        if name != used and found is not None:
            yield Point(step, name, found)


def number(value: Any) -> float | None:
    """A number as tools write it: also true, false, and NaN and infinity as words; None for anything else."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def whole(value: Any) -> int | None:
    """A step: a whole number from 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value) if value == int(value) else None


def _array(content: bytes, step_name: str | None) -> Iterator[Point | PointProblem]:
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        yield PointProblem(f"is not JSON: {error!s:.120}")
        return
    for index, record in enumerate(records):
        yield from points(record, place=f"entry {index}", step_name=step_name)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
