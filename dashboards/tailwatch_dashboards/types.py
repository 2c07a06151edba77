"""The leaf of types of the dashboards: what pages and figures are made from. Knows no service, no database,
no HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

State = Literal["healthy", "watch", "unhealthy", "no data"]
Theme = Literal["light", "dark"]
Tail = Literal["upper", "lower"]

STATES: tuple[State, ...] = ("no data", "healthy", "watch", "unhealthy")
"""In order of severity."""

ENVELOPE_SCHEMA = {
    "lower": pl.Float64,
    "upper": pl.Float64,
    "tokens": pl.Int64,
    "p2": pl.Float64,
    "p50": pl.Float64,
    "p98": pl.Float64,
}
"""One row per probability bin, ascending; null quantiles where a bin is empty."""

SURVIVAL_SCHEMA = {"tail": pl.String, "ratio": pl.Float64, "share": pl.Float64}
"""P(w > ratio) for the upper tail and P(1/w > ratio) for the lower one, ratio > 1 ascending within a tail."""

LAG_SCHEMA = {"step": pl.Int64, "lag": pl.String, "tokens": pl.Int64, "kl_k3": pl.Float64}
"""One row per step and occupied bucket of policy lag, in the buckets' order; `kl_k3` is the mean within the bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The lines a run is judged by, chosen by its declared class."""

    label: str
    """The class in words: dense bf16, fp8, MoE."""
    k3_watch: float | None
    """Nats per token; None: judged by growth over the run's own baseline only."""
    k3_unhealthy: float | None
    outside_2x_watch: float
    """Share of tokens with a ratio beyond 2 or below 1/2."""
    outside_2x_unhealthy: float
    declared: bool
    """False where the run said neither precision nor model class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One rule that a step broke."""

    rule: str
    state: State
    metric: str
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One state, one sentence, and why."""

    state: State
    sentence: str
    since_step: int | None
    """First step of the present stretch in this state; None where nothing was judged."""
    reasons: tuple[Reason, ...] = ()
    """Worst first; empty while healthy."""
    provisional: str | None = None
    """What weakens the reading (few steps, undeclared class), in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The run's own past: median and median absolute deviation of each metric over its first quiet steps."""

    steps: tuple[int, ...]
    """The steps it stands on, ascending."""
    median: Mapping[str, float]
    mad: Mapping[str, float]

    @property
    def label(self) -> str:
        """The steps it stands on, for captions."""
        first, last = self.steps[0], self.steps[-1]
        if len(self.steps) == last - first + 1:
            return f"steps {first}–{last}"
        return f"{len(self.steps)} quiet steps of {first}–{last}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EventMark:
    """Something that happened to a run, at a step or between steps."""

    kind: str
    at: float
    """Unix seconds."""
    step: int | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlertCard:
    """One alert of a run, open or resolved."""

    alert_id: str
    rule: str
    state: str
    """firing, acknowledged, silenced or resolved."""
    severity: str
    """warning or critical."""
    summary: str
    description: str
    runbook: str
    """Address of what to do."""
    fired_at: float
    """Unix seconds."""
    fired_step: int | None
    acknowledged_by: str | None = None
    silenced_until: float | None = None
    note: str | None = None
    resolved_at: float | None = None
    resolved_step: int | None = None
    resolved_reason: str | None = None

    @property
    def open(self) -> bool:
        """True until it is resolved."""
        return self.resolved_at is None


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingMark:
    """A step at which a rule was broken."""

    step: int
    rule: str
    severity: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstRow:
    """One of the worst tokens of a step."""

    log_ratio: float
    infer_logprob: float
    train_logprob: float
    rank: int
    part: int
    row: int
    """Sequence within its batch."""
    position: int
    token_id: int | None
    seq_id: str | None

    @property
    def ratio(self) -> float:
        """w = e^d; inf beyond float64."""
        return math.exp(self.log_ratio) if self.log_ratio < 700 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTokens:
    """A stretch of one sequence, token by token."""

    step: int
    rank: int
    part: int
    row: int
    seq_id: str | None
    first: int
    """Position of the first token shown."""
    length: int
    """Tokens of the whole sequence."""
    chosen: int
    """Position that was asked for."""
    infer_logprobs: tuple[float, ...]
    """NaN where not finite."""
    train_logprobs: tuple[float, ...]
    mask: tuple[bool, ...]
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TailFit:
    """Generalized Pareto tail: P(ratio > x) = share · (1 + k (x - threshold) / sigma)^(-1/k) beyond the
    threshold."""

    tail: Tail
    k: float
    sigma: float
    threshold: float
    share: float
    """Share of tokens beyond the threshold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricText:
    """What the registry says of a metric, for captions and definitions."""

    name: str
    title: str
    unit: str
    family: str
    formula: str
    description: str
    harm: str | None = None
    """Which direction hurts: higher, lower, away from 1, away from 0."""
    kl_direction: str | None = None
    healthy: str | None = None
    reference: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    missing_when: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slider:
    """One bound of a correction that can be moved."""

    field: str
    """lower, upper or budget."""
    value: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SignShare:
    """What a correction touches among the tokens or sequences of one sign of the advantage."""

    sign: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """One correction, replayed on a step."""

    name: str
    title: str
    effect: str
    """truncates, masks, clips or budget."""
    description: str
    reference: str
    sliders: tuple[Slider, ...]
    """With the bounds it was replayed with."""
    unit: str
    """tokens or sequences."""
    lower: float | None = None
    upper: float | None = None
    count: int = 0
    share: float | None = None
    """Of the units it touches; None: see `reason`."""
    above: float = 0.0
    below: float = 0.0
    share_error: float = 0.0
    token_share: float = 0.0
    signs: tuple[SignShare, ...] = ()
    ess_before: float | None = None
    ess_after: float | None = None
    mean_before: float | None = None
    mean_after: float | None = None
    reason: str | None = None
    """Why there is nothing to show, or no ESS after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One line of the run list."""

    run_id: str
    project: str
    name: str
    activity: str
    """running, finished or lost: what the process does, apart from how healthy it is."""
    verdict: Verdict
    k3: tuple[float | None, ...]
    """kl_k3 of the last steps, for the sparkline; None where missing."""
    last_step: int | None
    last_seen_at: float
    tokens: int | None
    """Of the last closed step."""
    precision: str | None = None
    framework: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """The chosen step, apart from its curves."""

    step: int
    phase: str
    revision: int
    coverage: float
    tokens: int
    sequences: int
    closed_at: float | None
    metrics: Mapping[str, float]
    missing: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of the headline metrics that have one; filled for the latest step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """Everything the run page shows of one run at one moment."""

    run_id: str
    project: str
    name: str
    activity: str
    attempt: int
    created_at: float
    last_seen_at: float
    last_step: int | None
    config: Mapping[str, Any]
    """Declared settings, shown as they are; None values are left out."""
    limits: Limits
    series: pl.DataFrame
    """Column `step` and one Float64 column per metric, null where missing; downsampled for long runs."""
    recent: pl.DataFrame
    """The same, undownsampled, for the last steps: what the verdict is read from."""
    baseline: Baseline | None
    latest: StepFacts | None
    chosen: StepFacts | None
    envelope: pl.DataFrame | None
    baseline_envelope: pl.DataFrame | None
    survival: pl.DataFrame | None
    fits: tuple[TailFit, ...]
    events: tuple[EventMark, ...]
    """Oldest first."""
    metrics: Mapping[str, MetricText]
    sampled: bool = False
    """True where `series` holds fewer steps than the run."""
    course: pl.DataFrame | None = None
    """Column `step`, effective sample sizes and the trainer's scalars, null where missing."""
    alerts: tuple[AlertCard, ...] = ()
    """Newest first."""
    findings: tuple[FindingMark, ...] = ()
    """By step."""
    worst: tuple[WorstRow, ...] = ()
    """Of the chosen step, the largest |d| first."""
    kept: bool = False
    """Whether the tokens of the chosen step are kept."""
    corrections: tuple[Replayed, ...] = ()
    """Every correction with its own bounds, on the chosen step."""
