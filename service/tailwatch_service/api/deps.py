"""Dependencies of the routes: the services, who is asking, the run of the path, and which step of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, Path, Query

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.types import MAX_NAME_LENGTH, MAX_STEP, Phase
from tailwatch_service.auth import ReadableRun, Reader, WritableRun, Writer
from tailwatch_service.errors import NotFound, Unprocessable
from tailwatch_service.services import ServicesDep, services_of
from tailwatch_service.storage import steps
from tailwatch_service.types import StepRecord

__all__ = [
    "LineDep",
    "ReadableRun",
    "Reader",
    "ServicesDep",
    "StepDep",
    "WritableRun",
    "Writer",
    "services_of",
]


@dataclass(frozen=True, slots=True)
class LineOf:
    """Which curve of a run is meant."""

    stream: str
    phase: Phase | None
    """None: the headline series."""
    update_index: int | None
    attempt: int | None
    """None: what is shown, an attempt ending where a later one begins."""


def _line(
    stream: Annotated[str, Query(min_length=1, max_length=MAX_NAME_LENGTH)] = steps.DEFAULT_STREAM,
    phase: Annotated[Phase | None, Query()] = None,
    update_index: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
    attempt: Annotated[int | None, Query(ge=1, le=MAX_STEP)] = None,
) -> LineOf:
    return LineOf(stream, phase, update_index, attempt)


LineDep = Annotated[LineOf, Depends(_line)]
"""`?stream=&phase=&update_index=&attempt=`."""


def _step(
    run: ReadableRun,
    services: ServicesDep,
    line: LineDep,
    step: Annotated[str, Path(description="A step number, or `latest` for the last closed one.")],
) -> StepRecord:
    read = partial(
        steps.latest if step == "latest" else partial(steps.get, step=_number(step), attempt=line.attempt),
        services.db,
        run.run_id,
    )
    found = read(stream=line.stream, phase=line.phase, update_index=line.update_index)
    if found is None:
        what = "closed step" if step == "latest" else f"step {step}"
        raise NotFound(f"run {run.run_id} has no {what} of this kind")
    return found


def _number(step: str) -> int:
    if not (step.isascii() and step.isdecimal()) or int(step[:17]) > MAX_STEP or len(step) > 16:
        reason = f"{step!r:.40} is not a step, 0 .. {MAX_STEP}, or latest"
        raise Unprocessable.of(FieldError(column="step", reason=reason))
    return int(step)


StepDep = Annotated[StepRecord, Depends(_step)]
"""The step of the path."""
