"""The life of an alert: advance(alert, what happened) -> (alert, what follows). No clock, no I/O.

    (none) -> pending -> firing <-> acknowledged, silenced -> resolved

Pending: a hit, and not enough of them yet; it lapses without a trace. Acknowledged: somebody is on it; only a worse
severity tells the receivers again. Silenced: until a time, receivers hear nothing; they hear of it when that time is
over and it still fires. Whoever heard that it fires hears that it ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from tailwatch_service.errors import KeyConflict
from tailwatch_service.types import Alert, Finding, Severity

Notice = Literal["firing", "resolved"]
"""What receivers are told."""

EventKind = Literal[
    "alert_firing", "alert_escalated", "alert_acknowledged", "alert_silenced", "alert_unsilenced", "alert_resolved"
]
"""What the run's event log is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A rule was broken, too few times to fire."""

    alert_id: str
    run_id: str
    finding: Finding
    now: float
    step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fire:
    """A rule fires, or fires worse."""

    alert_id: str
    """For a new alert."""
    run_id: str
    finding: Finding
    now: float
    step: int | None
    summary: str
    description: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lapse:
    """The window holds no hit any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledge:
    """Somebody is on it."""

    by: str
    now: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """Nobody wants to hear of it until then."""

    by: str
    now: float
    until: float
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time passed."""

    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolve:
    """It is over: the rule cleared, or there is nothing left to judge."""

    now: float
    reason: str
    step: int | None = None


Happening = Hit | Fire | Lapse | Acknowledge | Silence | Tick | Resolve


class Advance(NamedTuple):
    """What follows."""

    alert: Alert | None
    """The alert from now on; None: there is none."""
    notice: Notice | None = None
    event: EventKind | None = None


class InvalidTransition(KeyConflict):
    """The alert cannot do this in its state; says which state that is."""

    title = "Not possible in this state"


def fingerprint(run_id: str, rule: str, slice_: str) -> str:
    """[16] hexadecimal digits: what makes two alerts the same incident."""
    text = "\x00".join((run_id, rule, slice_)).encode()
    return hashlib.blake2b(text, digest_size=8, person=b"tailwatch alert").hexdigest()


def advance(alert: Alert | None, happening: Happening) -> Advance:
    """What becomes of an alert.

    Args:
        alert: the open alert of the fingerprint; None: there is none.
        happening: what happened.

    Raises:
        InvalidTransition: somebody asks for what its state does not allow.
    """
    match happening:
        case Hit():
            return Advance(_begun(happening) if alert is None else alert)
        case Fire():
            return _fire(alert, happening)
        case Lapse():
            return Advance(None if alert is not None and alert.state == "pending" else alert)
        case Acknowledge():
            return _acknowledge(alert, happening)
        case Silence():
            return _silence(alert, happening)
        case Tick():
            return _tick(alert, happening)
        case Resolve():
            return _resolve(alert, happening)


def _begun(hit: Hit | Fire) -> Alert:
    finding = hit.finding
    return Alert(
        alert_id=hit.alert_id,
        run_id=hit.run_id,
        rule=finding.rule,
        slice=finding.slice,
        fingerprint=fingerprint(hit.run_id, finding.rule, finding.slice),
        state="pending",
        severity=finding.severity,
        finding=finding,
        summary="",
        description="",
        evidence={},
        started_at=hit.now,
        started_step=hit.step,
        fired_at=None,
        fired_step=None,
        acknowledged_at=None,
        acknowledged_by=None,
        silenced_until=None,
        note=None,
        notified=False,
        resolved_at=None,
        resolved_step=None,
        resolved_reason=None,
        updated_at=hit.now,
    )


def _fire(alert: Alert | None, fire: Fire) -> Advance:
    before = alert if alert is not None else _begun(fire)
    worse = _rank(fire.finding.severity) > _rank(before.severity)
    said: dict[str, Any] = {
        "finding": fire.finding,
        "summary": fire.summary,
        "description": fire.description,
        "updated_at": fire.now,
    }
    if before.state == "pending":
        fired = replace(
            before,
            **said,
            state="firing",
            severity=fire.finding.severity,
            evidence=fire.evidence,
            fired_at=fire.now,
            fired_step=fire.step,
            notified=True,
        )
        return Advance(fired, "firing", "alert_firing")
    if not worse:
        return Advance(before)
    worsened = replace(before, **said, severity=fire.finding.severity)
    if before.state == "silenced":
        return Advance(worsened, None, "alert_escalated")
    # Who acknowledged the warning has not seen the critical one.
    return Advance(replace(worsened, state="firing", notified=True), "firing", "alert_escalated")


def _acknowledge(alert: Alert | None, ack: Acknowledge) -> Advance:
    known = _open(alert, "acknowledged")
    if known.state == "acknowledged":
        return Advance(known)
    made = replace(
        known,
        state="acknowledged",
        acknowledged_at=ack.now,
        acknowledged_by=ack.by,
        silenced_until=None,
        note=ack.note if ack.note is not None else known.note,
        updated_at=ack.now,
    )
    return Advance(made, None, "alert_acknowledged")


def _silence(alert: Alert | None, silence: Silence) -> Advance:
    known = _open(alert, "silenced")
    made = replace(
        known,
        state="silenced",
        silenced_until=silence.until,
        note=silence.note if silence.note is not None else known.note,
        updated_at=silence.now,
    )
    return Advance(made, None, "alert_silenced")


def _tick(alert: Alert | None, tick: Tick) -> Advance:
    if alert is None or alert.state != "silenced" or (alert.silenced_until or 0.0) > tick.now:
        return Advance(alert)
    made = replace(alert, state="firing", silenced_until=None, notified=True, updated_at=tick.now)
    return Advance(made, "firing", "alert_unsilenced")


def _resolve(alert: Alert | None, end: Resolve) -> Advance:
    if alert is None or alert.state == "resolved":
        return Advance(alert)
    if alert.state == "pending":
        return Advance(None)
    made = replace(
        alert,
        state="resolved",
        silenced_until=None,
        resolved_at=end.now,
        resolved_step=end.step,
        resolved_reason=end.reason,
        updated_at=end.now,
    )
    return Advance(made, "resolved" if alert.notified else None, "alert_resolved")


def _open(alert: Alert | None, what: str) -> Alert:
    if alert is None or alert.state in {"pending", "resolved"}:
        state = "absent" if alert is None else alert.state
        raise InvalidTransition(f"an alert that is {state} cannot be {what}")
    return alert


def _rank(severity: Severity) -> int:
    return ("warning", "critical").index(severity)
