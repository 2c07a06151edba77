"""Judging: a step that closes is judged once, in step order, in the transaction that closes it.

Rules, findings, alerts, events and the outbox go together or not at all. A late batch only marks what was found:
it never fires and never resolves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import sqlalchemy as sa

from tailwatch_service.alerts import evidence, wording
from tailwatch_service.alerts.lifecycle import Fire, Happening, Hit, Lapse, Resolve, fingerprint
from tailwatch_service.alerts.records import Place, Scribe, new_id
from tailwatch_service.detection import engine, overrides
from tailwatch_service.detection.classes import Declared, declared
from tailwatch_service.detection.engine import JudgedStep, SliceState, state_key
from tailwatch_service.detection.rules import Rule
from tailwatch_service.storage import alerts, findings, rules, schema
from tailwatch_service.storage.findings import Judgement
from tailwatch_service.storage.pending import Merged, PendingStep
from tailwatch_service.storage.steps import DEFAULT_STREAM
from tailwatch_service.types import Alert, Finding, SeriesKey

MIN_COVERAGE = 0.9
"""Steps of which fewer ranks delivered are not judged."""

_ACTIVE = {"warning": 1, "critical": 2}
_log = logging.getLogger(__name__)

_States = dict[str, SliceState]


class Judge:
    """Judges steps. Keeps nothing between calls."""

    def __init__(self, *, base: Mapping[str, Rule], scribe: Scribe) -> None:
        """Make a judge.

        Args:
            base: the rules before a project's or a run's changes.
            scribe: writes alerts down.
        """
        self._base = base
        self._scribe = scribe

    def closed(self, connection: sa.Connection, step: PendingStep, merged: Merged, *, now: float) -> None:
        """Judge a step that has just closed, or mark what was found where a late batch revised it.

        Runs inside the transaction that closes the step. An error of the rules is logged and leaves the step unjudged:
        it must not keep it open. An error of the database that may pass goes through, and the closer tries again.
        """
        try:
            with connection.begin_nested():
                self._closed(connection, step, merged, now=now)
        except (sa.exc.OperationalError, sa.exc.IntegrityError):
            raise
        # Whatever the rules stumbled over, the step has to close.
        except Exception:  # noqa: BLE001
            _log.exception("step %s of %s could not be judged", step.key.step, step.key.series)

    def _closed(self, connection: sa.Connection, step: PendingStep, merged: Merged, *, now: float) -> None:
        series, number = step.key
        if step.closed:
            findings.mark_revised(connection, series_id=step.series_id, step=number)
            return
        if not findings.is_headline(connection, series):
            return
        state = _state_for(findings.judgement(connection, series.run_id, stream=series.stream), step)
        if state is None:
            return
        if merged.coverage >= MIN_COVERAGE:
            state = self._judge(connection, step, merged, state, now=now)
        judged = Judgement(
            run_id=series.run_id,
            stream=series.stream,
            phase=series.phase,
            attempt=series.attempt,
            series_id=step.series_id,
            last_step=number,
            last_closed_at=now,
            state={key: one.to_json() for key, one in state.items()},
        )
        findings.put_judgement(connection, judged)

    def _judge(
        self, connection: sa.Connection, step: PendingStep, merged: Merged, state: _States, *, now: float
    ) -> _States:
        series, number = step.key
        place, run = _run(connection, series, step=number, now=now)
        known = effective(connection, self._base, project=place.project, run_id=series.run_id)
        open_alerts = alerts.open_of_run(connection, series.run_id)
        state = _brought_in_line(state, open_alerts, known, series=series)
        outcome = engine.judge(known.values(), JudgedStep(step=number, metrics=merged.metrics), state, run=run)
        found = [replace(one, slice=_slice(series.stream, one.slice)) for one in outcome.findings]
        findings.insert(connection, series_id=step.series_id, step=number, findings=found)
        for finding in found:
            alert = open_alerts.get(fingerprint(series.run_id, finding.rule, finding.slice))
            happening = _happening(connection, known[finding.rule], finding, step=step, merged=merged, at=place)
            self._scribe.happen(connection, alert, happening, at=place)
        for (rule_id, slice_), has_hit in outcome.pending.items():
            alert = open_alerts.get(fingerprint(series.run_id, rule_id, _slice(series.stream, slice_)))
            if alert is not None and alert.state == "pending" and not has_hit:
                self._scribe.happen(connection, alert, Lapse(), at=place)
        for alert in open_alerts.values():
            if alert.rule not in known or not known[alert.rule].enabled:
                self._scribe.happen(connection, alert, Resolve(now=now, reason="rule_disabled"), at=place)
        return outcome.state


def effective(
    connection: sa.Connection, base: Mapping[str, Rule], *, project: str, run_id: str | None
) -> Mapping[str, Rule]:
    """The rules of a project or a run: the base, the project's changes over it, the run's over those."""
    changed = rules.read(connection, project=project, run_id=run_id)
    known = base
    for changes in (changed.project, changed.run):
        if changes:
            try:
                known = overrides.apply(changes, base=known)
            except overrides.RuleError as error:
                # They were checked when they were stored; a newer service may know fewer metrics.
                _log.error("changed rules of %s %s are passed over: %s", project, run_id or "", error)
    return known


def fire(rule: Rule, finding: Finding, *, at: Place, series_id: int, connection: sa.Connection, summary: bytes) -> Fire:
    """What happens to an alert whose rule fires, with its words and its evidence."""
    frozen = evidence.freeze(connection, run_id=at.run_id, series_id=series_id, step=at.step, summary=summary)
    return Fire(
        alert_id=new_id(),
        run_id=at.run_id,
        finding=finding,
        now=at.now,
        step=at.step,
        summary=wording.summary(rule, finding, run=f"{at.project}/{at.run}", step=at.step),
        description=wording.description(rule, finding),
        evidence=frozen,
    )


def _happening(
    connection: sa.Connection, rule: Rule, finding: Finding, *, step: PendingStep, merged: Merged, at: Place
) -> Happening:
    if finding.transition in {"fired", "escalated"}:
        return fire(rule, finding, at=at, series_id=step.series_id, connection=connection, summary=merged.summary)
    if finding.transition == "cleared":
        return Resolve(now=at.now, reason="cleared", step=at.step)
    return Hit(alert_id=new_id(), run_id=at.run_id, finding=finding, now=at.now, step=at.step)


def _state_for(before: Judgement | None, step: PendingStep) -> _States | None:
    """The state to judge a step from; None where it comes too late to be judged."""
    if before is None:
        return {}
    series, number = step.key
    state = {key: SliceState.from_json(stored) for key, stored in before.state.items()}
    if series.phase != before.phase:
        return {}
    if series.attempt != before.attempt:
        return engine.restarted(state) if series.attempt > before.attempt else None
    return state if number > before.last_step else None


def _brought_in_line(
    state: _States, open_alerts: Mapping[str, Alert], known: Mapping[str, Rule], *, series: SeriesKey
) -> _States:
    """The state as the alerts have it: they may have been resolved by other hands."""
    made = dict(state)
    for rule in known.values():
        for slice_ in rule.slices:
            alert = open_alerts.get(fingerprint(series.run_id, rule.id, _slice(series.stream, slice_)))
            active = 0 if alert is None or alert.state == "pending" else _ACTIVE[alert.severity]
            key = state_key(rule.id, slice_)
            one = made.get(key, SliceState())
            if one.active and not active:
                made[key] = replace(one, active=0, quiet=0, recent=())
            elif active > one.active:
                made[key] = replace(one, active=active)
    return made


def _slice(stream: str, slice_: str) -> str:
    """A slice's name in findings and alerts: streams beside the default one are apart."""
    return slice_ if stream == DEFAULT_STREAM else f"{stream}/{slice_}".rstrip("/")


def _run(connection: sa.Connection, series: SeriesKey, *, step: int, now: float) -> tuple[Place, Declared]:
    row = connection.execute(sa.select(schema.runs).where(schema.runs.c.run_id == series.run_id)).one()
    place = Place(series.run_id, row.project, row.name, now, step, series.attempt)
    return place, declared(precision=row.precision, model_class=row.model_class, staleness_bound=row.staleness_bound)
