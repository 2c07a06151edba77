"""The fixture files, copied where a test may change them, and the numbers in them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from tailwatch_collectors.files.cursor import Cursor
from tailwatch_collectors.files.format import Format, Problem, Unit, named
from tailwatch_collectors.files.tail import Tail

HERE = Path(__file__).parent / "fixtures"

LONG_AGO = time.time() - 3600


def copy(name: str, to: Path) -> Path:
    """A copy in which every file is old and every `STABLE` young."""
    root = to / name
    shutil.copytree(HERE / name, root)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            stamp = LONG_AGO + (path.name == "STABLE")
            os.utime(path, (stamp, stamp))
    return root


def unit(name: str, root: Path, step: int) -> tuple[Format, Unit]:
    format_ = named(name)
    return format_, next(unit for unit in format_.find(root) if unit.step == step)


def rows(name: str, root: Path, step: int) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Rows and problems of one step."""
    format_, found = unit(name, root, step)
    items = list(format_.read(found))
    return [one for one in items if isinstance(one, dict)], [one for one in items if isinstance(one, Problem)]


def close(found: Any, expected: list[float]) -> bool:
    """Equal to the last bit; the fixtures hold numbers that are exact in float32."""
    return list(found) == expected


class Told(list[str]):
    """Collects what is said."""

    def __call__(self, line: str) -> None:
        self.append(line)


def tail(root: Path, name: str, **more: Any) -> tuple[Tail, Told]:
    """A tail that sends nowhere, or to `service=`."""
    told = Told()
    options: dict[str, Any] = {
        "format": named(name),
        "service": None,
        "cursor": Cursor(path=None, session="s"),
        "source": "test",
        "stop": threading.Event(),
        "tell": told,
        "settle": 1.0,
        **more,
    }
    return Tail(root, **options), told
