"""Stored summaries, read: one place that says what a step whose summary cannot be read is answered with."""

from __future__ import annotations

from tailwatch_collectors.summary import Summary, SummaryError, from_bytes
from tailwatch_service.errors import NotFound
from tailwatch_service.types import StepRecord

STILL_OPEN = "the step is still open"
OLDER = "its summary is of an older format, which this version does not read; its metrics are kept"


def summary_or_reason(step: StepRecord) -> Summary | str:
    """The step's merged summary, or why there is none: it is open, or was closed by an earlier version."""
    if not step.summary:
        return STILL_OPEN
    try:
        return from_bytes(step.summary)
    except SummaryError as error:
        return f"{OLDER} ({error})"


def summary_or_none(step: StepRecord | None) -> Summary | None:
    """The step's merged summary, where there is a step and it can be read."""
    found = None if step is None else summary_or_reason(step)
    return None if isinstance(found, str) else found


def summary_of(step: StepRecord) -> Summary:
    """The step's merged summary.

    Raises:
        NotFound: there is none yet, or none that this version reads.
    """
    found = summary_or_reason(step)
    if isinstance(found, str):
        raise NotFound(f"step {step.key.step}: {found}")
    return found
