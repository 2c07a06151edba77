"""The engine: judge(rules, step, state) -> (findings, state). No clock, no I/O; the state is plain JSON.

For each slice of each rule the state holds the levels of the last window of steps, the quiet streak, whether it fires,
and the past that relative comparisons look at: up to 50 values per lag bucket, steps that broke the rule left out.
A step without a value takes its place in the window, and is neither a hit nor quiet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from tailwatch_service.detection.classes import UNKNOWN_LAG, Declared, lag_bucket
from tailwatch_service.detection.comparisons import HISTORY, Absence, Context, Reading
from tailwatch_service.detection.rules import LAG_0, Check, Rule
from tailwatch_service.types import Finding, Severity, Transition

_SEVERITY: tuple[Severity, Severity, Severity] = ("warning", "warning", "critical")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedStep:
    """One closed step, as rules see it."""

    step: int
    metrics: Mapping[str, float]
    """Finite values by canonical name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceState:
    """Where one slice of one rule stands."""

    recent: tuple[int | None, ...] = ()
    """Levels of the last steps, oldest first; None: no value."""
    quiet: int = 0
    """Quiet steps in a row while it fires."""
    active: int = 0
    """0 quiet, 1 fires as a warning, 2 as critical."""
    judged: int = 0
    """Steps with a value so far."""
    cleared_step: int | None = None
    """Step at which it last cleared."""
    history: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    """Past values by metric and lag bucket, oldest first."""

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SliceState:
        """The state that `to_json` wrote; fields unknown to this version are left out."""
        known = {name: stored[name] for name in (f.name for f in fields(cls)) if name in stored}
        known["recent"] = tuple(known.get("recent", ()))
        known["history"] = {
            metric: {lag: tuple(values) for lag, values in lags.items()}
            for metric, lags in known.get("history", {}).items()
        }
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


State = Mapping[str, SliceState]
"""By `rule:slice`."""


class Outcome(NamedTuple):
    """What judging a step gave."""

    findings: list[Finding]
    """Hits and transitions."""
    pending: dict[tuple[str, str], bool]
    """For each (rule, slice) that does not fire: whether its window holds a hit."""
    state: dict[str, SliceState]


class _Read(NamedTuple):
    check: Check
    reading: Reading


def state_key(rule: str, slice_: str) -> str:
    """Where a slice's state is kept."""
    return f"{rule}:{slice_}"


def judge(rules: Iterable[Rule], step: JudgedStep, state: State, *, run: Declared) -> Outcome:
    """Judge one step by every enabled rule that looks at steps.

    Args:
        rules: the rules in effect.
        step: the step; steps are judged in order, each once.
        state: what the last call returned; empty for the first step.
        run: the run's class.
    """
    lag = lag_bucket(step.metrics.get("lag_mean"))
    stale = run.asynchronous if lag == UNKNOWN_LAG else lag != "0"
    findings: list[Finding] = []
    pending: dict[tuple[str, str], bool] = {}
    after: dict[str, SliceState] = {}
    for rule in rules:
        checks = [check for check in rule.checks if not isinstance(check.comparison, Absence)]
        if not rule.enabled or not checks:
            continue
        for slice_ in dict.fromkeys(check.slice for check in checks):
            key = state_key(rule.id, slice_)
            before = state.get(key, SliceState())
            mine = [check for check in checks if check.slice == slice_]
            at, old = lag, stale
            if rule.applies == "zero_lag" and lag not in {"0", UNKNOWN_LAG}:
                mine, at, old = _of_lag_0(mine, step), "0", False
            if not mine:
                after[key] = before
                continue
            after[key], finding = _judge_slice(rule, slice_, mine, step, before, run=run, lag=at, stale=old)
            if finding is not None:
                findings.append(finding)
            if not after[key].active:
                pending[rule.id, slice_] = any(after[key].recent)
    return Outcome(findings, pending, after)


def restarted(state: State) -> dict[str, SliceState]:
    """The state for the first step of another attempt: windows and streaks begin anew, the past and what fires stay."""
    return {key: SliceState(active=old.active, judged=old.judged, history=old.history) for key, old in state.items()}


def _of_lag_0(checks: list[Check], step: JudgedStep) -> list[Check]:
    """The checks, of the step's tokens at lag 0; without those that have no such form, or no value there."""
    named = [check if check.metric.endswith(LAG_0) else replace(check, metric=check.metric + LAG_0) for check in checks]
    return [check for check in named if check.metric in step.metrics]


def _judge_slice(
    rule: Rule,
    slice_: str,
    checks: list[Check],
    step: JudgedStep,
    before: SliceState,
    *,
    run: Declared,
    lag: str,
    stale: bool,
) -> tuple[SliceState, Finding | None]:
    reads = _read_all(rule, checks, step, before, run=run, lag=lag, stale=stale)
    level = max((read.reading.level for read in reads), default=None)
    recent = (*before.recent, level)[-rule.window :]
    judged = before.judged + (level is not None)
    hits = [sum(1 for past in recent if past is not None and past >= least) for least in (1, 2)]
    reach = (2 if hits[1] >= rule.hits else int(hits[0] >= rule.hits)) if judged > rule.warm_up else 0
    resting = before.cleared_step is not None and step.step <= before.cleared_step + rule.cooldown

    active, quiet, cleared_step = before.active, before.quiet, before.cleared_step
    transition: Transition | None = None
    if active == 0:
        if level and reach and not resting:
            active, quiet, transition = reach, 0, "fired"
        elif level:
            transition = "hit"
    else:
        quiet = quiet if not reads else quiet + 1 if all(read.reading.clear for read in reads) else 0
        if level and reach > active:
            active, transition = reach, "escalated"
        elif level:
            transition = "hit"
        elif quiet >= rule.clear_count:
            active, quiet, cleared_step, transition = 0, 0, step.step, "cleared"
    made = SliceState(
        recent=() if transition == "cleared" else recent,
        quiet=quiet,
        active=active,
        judged=judged,
        cleared_step=cleared_step,
        history=_remembered(before.history, reads, step, checks, lag=lag),
    )
    if transition is None:
        return made, None
    severity = _SEVERITY[max(before.active, active) if transition != "hit" else level or 0]
    return made, _finding(rule, slice_, transition, severity, checks, reads, hits[0], len(recent))


def _read_all(
    rule: Rule, checks: list[Check], step: JudgedStep, state: SliceState, *, run: Declared, lag: str, stale: bool
) -> list[_Read]:
    """Readings of the checks that have a value, quiet ones where the rule is not material."""
    made = []
    for check in checks:
        value = step.metrics.get(check.metric)
        if value is None or isinstance(check.comparison, Absence):
            continue
        past = state.history.get(check.metric, {}).get(lag, ())
        context = Context(run_class=run.run_class, stale=stale, lag=lag, history=past)
        reading = check.comparison.read(value, context)
        if reading is None:
            continue
        if rule.material is not None and step.metrics.get(rule.material.metric, rule.material.above + 1) <= (
            rule.material.above
        ):
            reading = Reading(
                level=0, clear=True, value=value, threshold=reading.threshold, basis=f"{reading.basis}; not material"
            )
        made.append(_Read(check, reading))
    return made


def _remembered(
    history: Mapping[str, Mapping[str, tuple[float, ...]]],
    reads: list[_Read],
    step: JudgedStep,
    checks: list[Check],
    *,
    lag: str,
) -> dict[str, Mapping[str, tuple[float, ...]]]:
    """The past with this step's values, for those comparisons that look at it."""
    made = dict(history)
    levels = {read.check.metric: read.reading.level for read in reads}
    for check in checks:
        looks_back = getattr(check.comparison, "min_history", 0) > 0
        value = step.metrics.get(check.metric)
        # A value that could not be read yet still is the past of later ones.
        if looks_back and value is not None and not levels.get(check.metric, 0):
            lags = made.get(check.metric, {})
            made[check.metric] = {**lags, lag: (*lags.get(lag, ()), value)[-HISTORY:]}
    return made


def _finding(
    rule: Rule,
    slice_: str,
    transition: Transition,
    severity: Severity,
    checks: list[Check],
    reads: list[_Read],
    hits: int,
    window: int,
) -> Finding:
    worst = max(reads, key=lambda read: read.reading.level, default=None)
    given: dict[str, Any] = {"metric": checks[0].metric, "value": None, "threshold": None, "basis": ""}
    if worst is not None:
        reading = worst.reading
        given = {
            "metric": worst.check.metric,
            **{name: getattr(reading, name) for name in ("value", "threshold", "baseline", "score", "basis")},
        }
    return Finding(
        rule=rule.id,
        slice=slice_,
        transition=transition,
        severity=severity,
        metric=given["metric"],
        value=given["value"],
        threshold=given["threshold"],
        baseline=given.get("baseline"),
        score=given.get("score"),
        basis=given["basis"],
        hits=hits,
        window=window,
    )
