"""Routes of one step: its metrics, envelope, histogram, slices and worst tokens, all from its stored summary."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response

from tailwatch_collectors import wire
from tailwatch_service import answers
from tailwatch_service.api.alerts import finding_json
from tailwatch_service.api.deps import ServicesDep, StepDep
from tailwatch_service.api.stored import STILL_OPEN, summary_of, summary_or_reason
from tailwatch_service.services import Services
from tailwatch_service.statistics.envelope import envelope
from tailwatch_service.statistics.histogram import Tail, histogram, survival
from tailwatch_service.statistics.intervals import envelope_intervals, intervals
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.statistics.slices import SliceRow, slices
from tailwatch_service.statistics.worst import WorstToken, worst_tokens
from tailwatch_service.storage import batches, findings
from tailwatch_service.types import StepRecord

router = APIRouter(tags=["steps"], prefix="/runs/{run}/steps/{step}")

MAX_SEGMENTS = 8
"""Most token segments opened for one answer."""


@router.get("", summary="One step in full")
def get_step(services: ServicesDep, step: StepDep) -> Response:
    """Every metric of the registry: a number, or null with the reason under `missing`."""
    missing = dict(step.missing) if step.closed else dict.fromkeys(METRICS, STILL_OPEN)
    reasons = {name: missing.get(name, "not computed when this step closed") for name in METRICS}
    content = _head(step) | {
        "closed": step.closed,
        "revision": step.revision,
        "coverage": step.coverage if step.closed else None,
        "expected_ranks": step.expected_ranks if step.closed else None,
        "tokens": step.tokens,
        "sequences": step.sequences,
        "first_at": step.first_at,
        "closed_at": step.closed_at,
        "metrics": {name: step.metrics.get(name) for name in METRICS},
        "missing": {name: reason for name, reason in reasons.items() if name not in step.metrics},
        **_details(step),
        "findings": [finding_json(found) for found in findings.of_step(services.db, step.key)],
    }
    return answers.json(content)


@router.get("/envelope", summary="P2, P50 and P98 of the log ratio by inference probability")
def get_envelope(step: StepDep) -> Response:
    """One bin per range of probability, ascending; null where a bin is empty, or too thin for an interval."""
    summary = summary_of(step)
    bins = [
        asdict(part)
        | {"intervals": {name: None if isinstance(found, str) else found for name, found in around.items()}}
        for part, around in zip(envelope(summary), map(asdict, envelope_intervals(summary)), strict=True)
    ]
    return answers.json(_head(step) | {"bins": bins})


@router.get("/histogram", summary="The histogram of the log ratio, and its tails")
def get_histogram(step: StepDep) -> Response:
    """Counts between edges (four cells an octave), and P(ratio > x) at both ends with the fitted Pareto tail."""
    summary = summary_of(step)
    counted = histogram(summary)
    tails = survival(summary)
    return answers.json(
        _head(step)
        | {
            "edges": counted.edges,
            "counts": counted.counts,
            "below": counted.below,
            "above": counted.above,
            "survival": {"upper": _tail(tails.upper), "lower": _tail(tails.lower)},
        }
    )


@router.get("/tokens", summary="The worst tokens")
def get_tokens(
    services: ServicesDep,
    step: StepDep,
    context: Annotated[int, Query(ge=0, le=64, description="Neighbours on each side, where tokens are kept.")] = 0,
) -> Response:
    """Both ends of the log ratio, the largest first; with their neighbours where the tokens of the step are kept."""
    worst = worst_tokens(summary_of(step))
    around = _context(services, step, worst, width=context) if context else {}
    tokens = [asdict(token) | ({"context": around[i]} if i in around else {}) for i, token in enumerate(worst)]
    return answers.json(_head(step) | {"tokens": tokens})


def _head(step: StepRecord) -> dict[str, Any]:
    series = step.key.series
    return {
        "run_id": series.run_id,
        "step": step.key.step,
        "stream": series.stream,
        "attempt": series.attempt,
        "phase": series.phase,
        "update_index": series.update_index,
    }


def _details(step: StepRecord) -> dict[str, Any]:
    """What is read from the summary: intervals of the metrics or why they have none, and slices."""
    found = summary_or_reason(step)
    if isinstance(found, str):
        reasons = dict.fromkeys(step.metrics, found)
        return {"intervals": {}, "intervals_missing": reasons, "slices": {}, "slices_missing": found}
    around = intervals(found, {name: step.metrics[name] for name in METRICS if name in step.metrics})
    rows: dict[str, list[SliceRow]] = slices(found)
    return {
        "intervals": around.values,
        "intervals_missing": around.missing,
        "slices": {name: [asdict(row) for row in part] for name, part in rows.items()},
        "slices_missing": None,
    }


def _tail(tail: Tail) -> dict[str, Any]:
    fitted = asdict(tail.fit) if is_dataclass(tail.fit) else None
    return {
        "log_ratio": tail.log_ratio,
        "share": tail.share,
        "fit": fitted,
        "fit_missing": tail.fit if isinstance(tail.fit, str) else None,
    }


def _context(services: Services, step: StepRecord, worst: list[WorstToken], *, width: int) -> dict[int, Any]:
    """The neighbours of each worst token, by its index, as far as segments are kept."""
    names = {(part.rank, part.part): part.segment for part in batches.of_step(services.db, step.key) if part.segment}
    wanted = list(dict.fromkeys((token.rank, token.part) for token in worst))
    opened = {}
    for key in [key for key in wanted if key in names][:MAX_SEGMENTS]:
        opened[key] = wire.decode(services.segments.read(names[key] or "")).batch
    found = {}
    for i, token in enumerate(worst):
        batch = opened.get((token.rank, token.part))
        if batch is None or token.row >= batch.sequences:
            continue
        start, end = (int(offset) for offset in batch.offsets_B1[token.row : token.row + 2])
        first = max(start, start + token.position - width)
        cut = slice(first, min(end, start + token.position + width + 1))
        ids = batch.token_ids_N
        found[i] = {
            "position": first - start,
            "token_ids": None if ids is None else ids[cut],
            "infer_logprobs": np.asarray(batch.infer_logprobs_N[cut], np.float64),
            "train_logprobs": np.asarray(batch.train_logprobs_N[cut], np.float64),
        }
    return found
