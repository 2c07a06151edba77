"""What a format is: units of one training step each, whether one is whole, and its sequences as rows."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.errors import BatchError, ConfigurationError, FieldError
from tailwatch_collectors.types import MAX_STEP, Phase

State = Literal["whole", "looks_whole", "partial"]
"""The writer has said that it is through; nothing speaks against it; something is missing at the end."""

FORMATS = ("prime-rl", "nemo-rl", "slime", "skyrl", "verl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """The files of one training step."""

    step: int
    paths: tuple[Path, ...]
    """Its data files, in the order in which they are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something in a file that could not be sent."""

    path: Path
    kind: Literal["corrupt", "torn", "no_logprobs", "unusable", "incomplete", "rewritten", "refused"]
    """corrupt: cannot be read; torn: ends in the middle; no_logprobs: nothing to compare; unusable: read, but forms
    no sequence; incomplete: its writer never said that it was through; rewritten: changed after it was sent;
    refused: the service would not have it."""
    reason: str
    line: int | None = None
    """Line of a text file, from 1."""

    @property
    def loses(self) -> bool:
        """Whether sequences were lost: not where a trainer wrote none, or wrote them anew."""
        return self.kind not in {"no_logprobs", "rewritten", "incomplete"}

    def __str__(self) -> str:
        where = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.kind}: {self.reason}"


Item = Row | Problem


class Format(Protocol):
    """One way of writing log-probs to files."""

    name: str
    """As on the command line."""
    phase: Phase
    """When the training log-probs of these files were computed."""
    settles: bool
    """Whether a file that has not changed for a while is whole, for want of a marker."""
    marker: str | None
    """What the writer leaves when a step is through."""

    def find(self, root: Path) -> list[Unit]:
        """The units there are now, by step."""
        ...

    def state(self, unit: Unit) -> State:
        """Whether a unit is whole. Cheap."""
        ...

    def read(self, unit: Unit) -> Iterator[Item]:
        """Its sequences, in the same order each time, and what could not be read, where it stood."""
        ...


def named(name: str, **options: Any) -> Format:
    """The format of that name.

    Raises:
        ConfigurationError: there is none, it needs a package that is not installed, or not this option.
    """
    if name not in FORMATS:
        raise ConfigurationError(f"format {name!r} is not one of {', '.join(FORMATS)}")
    module = importlib.import_module(f"tailwatch_collectors.files.{name.replace('-', '_')}")
    try:
        made: Format = module.FORMAT(**{key: value for key, value in options.items() if value is not None})
    except TypeError as error:
        given = ", ".join(f"{key}={value}" for key, value in options.items() if value is not None)
        raise ConfigurationError(f"format {name} takes no {given}") from error
    return made


def torch_load(file: Path | IO[bytes]) -> Any:
    """A torch file, read so that it cannot run code.

    Raises:
        ImportError: torch is not installed.
        Exception: whatever a broken file leads torch to.
    """
    # By name: this package does not depend on torch.
    return importlib.import_module("torch").load(file, map_location="cpu", weights_only=True)


def numbered(root: Path, pattern: str, number: Callable[[Path], int | None]) -> list[tuple[int, Path]]:
    """Files below `root` by the step in their names, ascending; those without one are left out."""
    found = [(number(path), path) for path in root.glob(pattern)]
    return sorted((step, path) for step, path in found if step is not None and 0 <= step <= MAX_STEP)


def last_byte(path: Path) -> bytes:
    """The last byte of a file; empty where it is empty or gone."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            if file.tell() == 0:
                return b""
            file.seek(-1, 2)
            return file.read(1)
    except OSError:
        return b""


def json_lines(path: Path, row: Callable[[dict[str, Any], int], Row | Problem | None]) -> Iterator[Item]:
    """The lines of a JSON-lines file as rows.

    Args:
        path: the file.
        row: makes a row of (object, line number from 1); None passes it over; a BatchError, KeyError, TypeError or
            ValueError makes the line unusable.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                torn = not line.endswith(b"\n")
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    kind: Literal["torn", "corrupt"] = "torn" if torn else "corrupt"
                    yield Problem(path=path, line=number, kind=kind, reason=f"is not JSON: {error!s:.120}")
                    continue
                yield from _row(path, number, found, row)
    except OSError as error:
        yield Problem(path=path, kind="corrupt", reason=f"cannot be read: {error.strerror or error}")


def _row(
    path: Path, number: int, found: Any, row: Callable[[dict[str, Any], int], Row | Problem | None]
) -> Iterator[Item]:
    try:
        if not isinstance(found, dict):
            raise BatchError(FieldError(reason=f"is a JSON {type(found).__name__}, expected an object"))
        made = row(found, number)
    except KeyError as error:
        yield Problem(path=path, line=number, kind="no_logprobs", reason=f"has no {str(error).strip(chr(39))}")
        return
    except (BatchError, TypeError, ValueError, IndexError) as error:
        yield Problem(path=path, line=number, kind="unusable", reason=f"{error!s:.200}")
        return
    if made is not None:
        yield made
