"""The seam between the run and what becomes of it: one small interface, a recording and a live stream behind it.

Every sink gets the very same `Batch`, so a recording replayed later holds bit for bit what the service got live.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tailwatch_collectors.batch import Batch


class Sink(Protocol):
    """Takes what a run produces, in the order in which it produces it."""

    def batch(self, batch: Batch) -> None:
        """Take the tokens of one step."""

    def scalars(self, step: int, *, values: Mapping[str, float]) -> None:
        """Take the scalars of one step; a scalar that was not measured is left out."""

    def event(self, kind: str, *, step: int, payload: Mapping[str, Any]) -> None:
        """Take something that happened at a step, for example a `weight_sync`."""
