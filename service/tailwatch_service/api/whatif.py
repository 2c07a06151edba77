"""Route of what-if: what each correction a trainer can choose would do to one step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from tailwatch_collectors.errors import FieldError
from tailwatch_collectors.summary import Summary
from tailwatch_service import answers
from tailwatch_service.api.deps import StepDep
from tailwatch_service.api.stored import summary_of
from tailwatch_service.errors import Unprocessable
from tailwatch_service.statistics import whatif
from tailwatch_service.statistics.corrections import CORRECTIONS
from tailwatch_service.types import StepRecord

router = APIRouter(tags=["steps"], prefix="/runs/{run}/steps/{step}")

Number = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/what-if", summary="What a correction would do to a step")
def get_what_if(
    step: StepDep,
    correction: Annotated[list[str] | None, Query(description="One name; default: all with their own bounds.")] = None,
    lower: Number = None,
    upper: Number = None,
    budget: Number = None,
) -> Response:
    """Share truncated or masked, effective sample size and mean weight, from the step's histograms. A combination of
    corrections is refused: it needs the tokens."""
    summary = summary_of(step)
    names = correction or list(CORRECTIONS)
    if correction and len(correction) > 1:
        raise Unprocessable.of(FieldError(column="correction", reason=f"{'+'.join(names):.120}: {whatif.COMBINED}"))
    if not correction and (lower, upper, budget) != (None, None, None):
        raise Unprocessable.of(FieldError(column="correction", reason="name the correction that the bounds are for"))
    replayed = [replay(summary, name, lower=lower, upper=upper, budget=budget) for name in names]
    return answers.json(_head(step) | {"corrections": [_json(*one) for one in zip(names, replayed, strict=True)]})


def replay(
    summary: Summary, name: str, *, lower: float | None, upper: float | None, budget: float | None
) -> whatif.Outcome | str:
    """One correction replayed.

    Raises:
        Unprocessable: unknown, or its bounds make no sense.
    """
    try:
        return whatif.what_if(summary, name, lower=lower, upper=upper, budget=budget)
    except whatif.WhatIfError as error:
        raise Unprocessable.of(FieldError(column=error.field, reason=error.reason)) from error


def _head(step: StepRecord) -> dict[str, Any]:
    series = step.key.series
    return {"run_id": series.run_id, "step": step.key.step, "phase": series.phase}


def _json(name: str, found: whatif.Outcome | str) -> dict[str, Any]:
    known = asdict(CORRECTIONS[name])
    outcome = None if isinstance(found, str) else asdict(found)
    return {"correction": known, "outcome": outcome, "missing": found if isinstance(found, str) else None}
