"""What adapters share: a collector named after the trainer's own settings, for hooks that a framework calls by path."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.collector import Collector, connect
from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.guard import Guard
from tailwatch_collectors.types import MAX_NAME_LENGTH

_connected: list[Collector] = []


def _count() -> None:
    for collector in _connected[-1:]:
        collector.count_error()


guard = Guard(on_error=_count)
"""For hooks that a framework calls by path: what goes wrong counts with the newest collector made by `named`, and is
only logged before there is one."""


def named(
    framework: str,
    *,
    project: str | None = None,
    run: str | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **placement: Any,
) -> Collector:
    """Connect, with what the trainer knows as defaults.

    Args:
        framework: name of the distribution, for example `trl`; its version is looked up.
        project: default project, where neither `settings` nor `TAILWATCH_PROJECT` names one; else the framework.
        run: default run, likewise; else `run`.
        config: fields of the run; None values are left out. Those of `settings["config"]` win.
        settings: the user's own arguments of `connect`.
        **placement: `rank` and `world_size` as the trainer counts them.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    given = dict(settings or {})
    # Configuration objects hold anything: a dtype, a nested configuration.
    known = {
        name: value if isinstance(value, str | int | float) else str(value)
        for name, value in (config or {}).items()
        if value is not None
    }
    given["config"] = {**known, **(given.get("config") or {})}
    for name, value in (("project", project or framework), ("run", run or "run")):
        if not given.get(name) and not os.environ.get(f"TAILWATCH_{name.upper()}"):
            given[name] = str(value).strip()[-MAX_NAME_LENGTH:] or name
    given.setdefault("framework", f"{framework} {version(framework)}".strip())
    collector = connect(**{**placement, **given})
    _connected[:] = [collector]
    return collector


def version(distribution: str) -> str:
    """Version of an installed distribution, else of a loaded module of that name, else an empty string."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        module = sys.modules.get(distribution.replace("-", "_"))
        return str(getattr(module, "__version__", ""))


class Late:
    """A collector for hooks that a framework calls by path: made at the first use, never by importing.

    A wrong setting is logged once and the hooks stay away: nobody called them who could be told by an exception.
    """

    def __init__(self) -> None:
        self._collector: Collector | None = None
        self._failed = False

    def get(self, make: Callable[[], Collector]) -> Collector | None:
        """The collector, made by `make` at the first call; None where that failed."""
        if self._collector is None and not self._failed:
            try:
                self._collector = make()
            except ConfigurationError as error:
                self._failed = True
                guard.once("connect", message=f"not connected, nothing is recorded: {error}")
        return self._collector

    def end_step(self, step: int) -> None:
        """Say that the parts of a step are all there; nothing where nothing was recorded."""
        if self._collector is not None:
            self._collector.end_step(step)

    def finished(self) -> None:
        """Send what is left, for a bounded time, and say that the run is over; nothing where nothing was recorded."""
        if self._collector is not None:
            self._collector.close(finished=True)

    def use(self, collector: Collector | None) -> None:
        """Take this collector; None: make another one at the next use."""
        self._collector, self._failed = collector, False


def wanted() -> bool:
    """Whether the environment asks for streaming, for hooks that load by themselves."""
    return bool(os.environ.get("TAILWATCH_URL") or os.environ.get("TAILWATCH_SPOOL_DIR"))


def per_sequence(rows: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> list[Any]:
    """[B] numbers in place of [B][T] rows that are each constant where the mask is true; else the rows."""
    counted = [row[mask] for row, mask in zip(rows, masks, strict=True)]
    if any(len(row) and not (row == row[0]).all() for row in counted):
        return list(rows)
    return [float(row[0]) if len(row) else math.nan for row in counted]


def look(value: Any, *path: str) -> Any:
    """Follow attributes or keys through whatever a framework's configuration is made of; None where it ends."""
    for name in path:
        if value is None:
            return None
        try:
            value = value.get(name) if hasattr(value, "get") else getattr(value, name, None)
        except Exception:  # noqa: BLE001 - a strict configuration object says "no such field" with its own error
            return None
    return value
