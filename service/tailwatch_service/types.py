"""The leaf of types of the service: keys, records and rows that every room may import. Imports nothing of ours
but the SDK's own leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.types import Phase

BatchKind = Literal["tokens", "summary"]
RunState = Literal["running", "finished", "lost"]
Scope = Literal["read", "write", "control", "admin"]
Severity = Literal["warning", "critical"]
AlertState = Literal["pending", "firing", "acknowledged", "silenced", "resolved"]
Transition = Literal["hit", "fired", "escalated", "cleared"]


class SeriesKey(NamedTuple):
    """One line of steps: what a curve is drawn through. Steps of different keys are never merged."""

    run_id: str
    stream: str
    attempt: int
    phase: Phase
    update_index: int


class StepKey(NamedTuple):
    """One step of one series."""

    series: SeriesKey
    step: int


class BatchKey(NamedTuple):
    """The one key space of Arrow, JSON and summary batches."""

    step_key: StepKey
    rank: int
    part: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """What a client says of a run. None: not said (an update leaves the stored value)."""

    project: str
    name: str
    framework: str | None = None
    model_class: str | None = None
    precision: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    logprobs_mode: str | None = None
    world_size: int | None = None
    staleness_bound: int | None = None
    tags: Mapping[str, str] | None = None
    config: Mapping[str, Any] | None = None
    """Free-form configuration, shown on the run page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A stored run."""

    run_id: str
    """Opaque and URL-safe."""
    spec: RunSpec
    attempt: int
    """The latest attempt, from 1."""
    state: RunState
    created_at: float
    """Unix seconds."""
    updated_at: float
    last_seen_at: float
    """Unix seconds of the last batch, heartbeat, scalar or event."""
    last_step: int | None
    """Largest step with a closed row; None before the first."""
    archived: bool
    last_event_seq: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewBatch:
    """A decoded, summarised batch on its way to the writer."""

    key: BatchKey
    kind: BatchKind
    digest: bytes
    """[32] SHA-256 of the decoded content."""
    final: bool
    world_size: int | None
    train_version: int | None
    tokens: int
    sequences: int
    summary: bytes
    segment: str | None
    """Name of the private token segment; None where tokens are not kept."""
    recorded_at: float | None
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOutcome:
    """What became of a batch, known only after its transaction is durable."""

    batch_id: str
    status: Literal["stored", "duplicate"]
    key: BatchKey


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step as it is stored: open, or closed with its merged summary and metrics."""

    key: StepKey
    closed: bool
    revision: int
    """0 at first closing; one more for each late batch merged since."""
    coverage: float
    """Ranks that delivered over ranks expected, 0 .. 1."""
    expected_ranks: int
    tokens: int
    sequences: int
    metrics: Mapping[str, float]
    """Finite values by canonical name."""
    missing: Mapping[str, str]
    """Reason for each metric that does not exist for this step."""
    summary: bytes
    """Serialised merged summary; empty while open."""
    first_at: float
    """Unix seconds of the step's first batch."""
    closed_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesTable:
    """Step-indexed columns of one run's series; K steps in ascending order."""

    series: SeriesKey
    """The key of the latest attempt in it."""
    steps_K: NDArray[np.int64]
    attempts_K: NDArray[np.int64]
    """Attempt each step belongs to; an attempt ends where a later attempt's first step begins."""
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """[K] per metric or scalar; NaN where it does not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One row of a run's event log: what the live stream points at."""

    run_id: str
    seq: int
    """The run's sequence number, from 1, without gaps."""
    kind: str
    """step_closed, step_revised, run_created, attempt_started, weight_sync, resume, finished, ..."""
    at: float
    step: int | None
    attempt: int | None
    payload: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A stored key: its secret is known only as a hash."""

    key_id: str
    name: str
    project: str | None
    """The project it is limited to; None: all."""
    scopes: frozenset[Scope]
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a rule found at one step: a hit, or the step at which it fired, escalated or cleared."""

    rule: str
    slice: str
    """Part of the run that was judged; empty: all of it."""
    transition: Transition
    severity: Severity
    metric: str
    value: float | None
    """None where the rule cleared on a step without a value."""
    threshold: float | None
    """Line the value was held against, in the metric's unit; None: there was none."""
    baseline: float | None
    """Median of the run's own past; None where it was not used."""
    score: float | None
    """Robust z, or growth factor; None for plain lines."""
    basis: str
    """What it was compared with, in words."""
    hits: int
    """Steps of the window that broke the rule."""
    window: int
    """Length of the window, steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One incident of one rule on one slice of a run, from the first hit to its resolution."""

    alert_id: str
    run_id: str
    rule: str
    slice: str
    fingerprint: str
    """[16] hexadecimal digits of (run, rule, slice): at most one open alert has it."""
    state: AlertState
    severity: Severity
    """The worst so far."""
    finding: Finding
    """The finding that fired it, or the first hit while pending."""
    summary: str
    description: str
    evidence: Mapping[str, Any]
    """Frozen at firing: metrics of the steps around it, worst tokens, the run's description. Empty while pending."""
    started_at: float
    started_step: int | None
    fired_at: float | None
    fired_step: int | None
    acknowledged_at: float | None
    acknowledged_by: str | None
    silenced_until: float | None
    note: str | None
    notified: bool
    """Whether receivers were told that it fires, and so have to be told that it ends."""
    resolved_at: float | None
    resolved_step: int | None
    resolved_reason: str | None
    """cleared, run_finished, run_archived or rule_disabled."""
    updated_at: float
