"""The watch: what happens to alerts between steps, by the clock or by people.

Silences end, runs end, streams fall silent, somebody acknowledges. Silence of a stream is judged here, by the wall
clock, because nothing closes while it lasts.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from tailwatch_service.alerts.judging import effective, fire
from tailwatch_service.alerts.lifecycle import Acknowledge, Happening, Resolve, Silence, Tick, fingerprint
from tailwatch_service.alerts.records import Place, Scribe, place_of
from tailwatch_service.detection.comparisons import Absence, Reading
from tailwatch_service.detection.rules import SILENCE, Check, Rule
from tailwatch_service.storage import alerts, findings, pending
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.findings import Judgement
from tailwatch_service.storage.steps import DEFAULT_STREAM
from tailwatch_service.types import Alert, Event, Finding, Severity

SHORTEST_SILENCE_S = 10.0
"""Silence below which no rule is asked, and seconds between two looks at silent runs."""

MIN_STEPS = 3
"""Steps a run must have closed before its silence is judged: before that, nobody knows how long its steps take."""

_SEVERITY: tuple[Severity, Severity] = ("warning", "critical")


class _Silent(NamedTuple):
    """A rule that has to say something of a silent run."""

    rule: Rule
    check: Check
    reading: Reading
    alert: Alert | None


class Watch:
    """Changes alerts between steps. Keeps only when it began, and when it last looked at silent runs."""

    def __init__(self, db: Database, *, base: Mapping[str, Rule], scribe: Scribe) -> None:
        """Make a watch.

        Args:
            db: the database.
            base: the rules before a project's or a run's changes.
            scribe: writes alerts down.
        """
        self._db = db
        self._base = base
        self._scribe = scribe
        self._looked_at = 0.0
        self._since: float | None = None

    def sweep(self, *, now: float) -> list[Event]:
        """What time alone decides: silences that end, runs that ended, streams that fell silent; the events made."""
        # While the service was away nobody could be heard: silence begins with the first sweep.
        self._since = now if self._since is None else self._since
        due: list[tuple[str, Happening]] = [
            (alert_id, Tick(now=now)) for alert_id in alerts.silences_over(self._db, now=now)
        ]
        due += [(alert_id, Resolve(now=now, reason=why)) for alert_id, why in alerts.of_ended_runs(self._db)]
        made = [self._happen(alert_id, happening, now=now) for alert_id, happening in due]
        if now - self._looked_at >= SHORTEST_SILENCE_S:
            self._looked_at = now
            made += self._look_at_silence(now)
        return [event for event in made if event is not None]

    def acknowledge(self, alert_id: str, *, by: str, now: float, note: str | None = None) -> Event | None:
        """Note that somebody is on it; None where it is acknowledged already.

        Raises:
            NotFound: no such alert.
            InvalidTransition: it is resolved.
        """
        return self._happen(alert_id, Acknowledge(by=by, now=now, note=note), now=now)

    def silence(self, alert_id: str, *, by: str, now: float, until: float, note: str | None = None) -> Event | None:
        """Keep receivers from hearing of it until then.

        Raises:
            NotFound: no such alert.
            InvalidTransition: it is resolved.
        """
        return self._happen(alert_id, Silence(by=by, now=now, until=until, note=note), now=now)

    def _happen(self, alert_id: str, happening: Happening, *, now: float) -> Event | None:
        with self._db.write() as connection:
            alert = alerts.get_locked(connection, alert_id)
            at = place_of(connection, alert.run_id, now=now)
            return self._scribe.happen(connection, alert, happening, at=at)

    def _look_at_silence(self, now: float) -> list[Event | None]:
        before = now - SHORTEST_SILENCE_S
        silent = {one.run_id: one for one in findings.silent(self._db, stream=DEFAULT_STREAM, closed_before=before)}
        made = [event for one in silent.values() for event in self._judge_silence(one, now=now)]
        over = Resolve(now=now, reason="cleared")
        made += [
            self._happen(alert.alert_id, over, now=now)
            for alert in alerts.all_open(self._db)
            if alert.finding.metric == SILENCE and alert.run_id not in silent
        ]
        return made

    def _judge_silence(self, judged: Judgement, *, now: float) -> list[Event | None]:
        starts = pending.recent_starts(self._db, judged.series_id)
        if len(starts) < MIN_STEPS:
            return []
        times = [later - earlier for earlier, later in itertools.pairwise(starts) if later > earlier]
        step_s = statistics.median(times) if times else 0.0
        silence_s = now - max(judged.last_closed_at, self._since or 0.0)
        with self._db.read() as connection:  # most silent runs have been spoken of: no write for them
            if not self._to_say(connection, judged, silence_s, step_s):
                return []
        made: list[Event | None] = []
        with self._db.write() as connection:
            at = place_of(connection, judged.run_id, now=now, step=judged.last_step, attempt=judged.attempt)
            for silent in self._to_say(connection, judged, silence_s, step_s):
                happening = _happening(connection, silent, judged, at)
                made.append(self._scribe.happen(connection, silent.alert, happening, at=at))
        return made

    def _to_say(self, connection: sa.Connection, judged: Judgement, silence_s: float, step_s: float) -> list[_Silent]:
        at = place_of(connection, judged.run_id, now=0.0)
        known = effective(connection, self._base, project=at.project, run_id=judged.run_id)
        open_alerts = alerts.open_of_run(connection, judged.run_id)
        made = []
        for rule in known.values():
            for check in rule.checks:
                if not rule.enabled or not isinstance(check.comparison, Absence):
                    continue
                alert = open_alerts.get(fingerprint(judged.run_id, rule.id, check.slice))
                reading = check.comparison.read_silence(silence_s, step_s=step_s)
                told = 0 if alert is None else _SEVERITY.index(alert.severity) + 1
                # Silence is counted from the service's start at the earliest; only a step ends what was told before.
                spoke = alert is not None and judged.last_closed_at > (alert.fired_at or alert.started_at)
                if reading.level > told or (spoke and reading.level == 0):
                    made.append(_Silent(rule, check, reading, alert))
        return made


def _happening(connection: sa.Connection, silent: _Silent, judged: Judgement, at: Place) -> Happening:
    rule, check, reading, alert = silent
    if reading.level == 0:
        return Resolve(now=at.now, reason="cleared")
    finding = Finding(
        rule=rule.id,
        slice=check.slice,
        transition="fired" if alert is None else "escalated",
        severity=_SEVERITY[reading.level - 1],
        metric=check.metric,
        value=reading.value,
        threshold=reading.threshold,
        baseline=reading.baseline,
        score=reading.score,
        basis=reading.basis,
        hits=1,
        window=1,
    )
    return fire(rule, finding, at=at, series_id=judged.series_id, connection=connection, summary=b"")
