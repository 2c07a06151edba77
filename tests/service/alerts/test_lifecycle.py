from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_service.alerts.lifecycle import (
    Acknowledge,
    Advance,
    Fire,
    Hit,
    InvalidTransition,
    Lapse,
    Resolve,
    Silence,
    Tick,
    advance,
    fingerprint,
)
from tailwatch_service.types import Alert, Finding, Severity

FINDING = Finding(
    rule="KlSpike", slice="", transition="fired", severity="warning", metric="kl_k3", value=1.0, threshold=0.1,
    baseline=None, score=None, basis="", hits=2, window=3,
)  # fmt: skip


def fire(severity: Severity = "warning", *, now: float = 1.0) -> Fire:
    finding = replace(FINDING, severity=severity)
    return Fire(
        alert_id="a", run_id="r", finding=finding, now=now, step=7, summary="s", description="d", evidence={"e": 1}
    )


def after(*happenings: Any) -> Advance:
    step = Advance(None)
    for happening in happenings:
        step = advance(step.alert, happening)
    return step


HIT = Hit(alert_id="a", run_id="r", finding=FINDING, now=0.0, step=6)
ACK = Acknowledge(by="me", now=2.0, note="looking")
QUIET = Silence(by="me", now=2.0, until=10.0)
END = Resolve(now=3.0, reason="cleared", step=9)


def test_a_hit_is_pending_and_lapses_without_a_trace() -> None:
    assert after(HIT).alert is not None
    assert after(HIT).event is None
    assert after(HIT, Lapse()) == Advance(None)
    assert after(HIT, END) == Advance(None)


def test_firing_freezes_the_evidence_and_tells() -> None:
    step = after(HIT, fire(now=1.0))
    assert step.alert is not None
    assert (step.notice, step.event) == ("firing", "alert_firing")
    assert (step.alert.state, step.alert.started_at, step.alert.fired_at) == ("firing", 0.0, 1.0)
    assert step.alert.evidence == {"e": 1}
    again = after(HIT, fire(), fire(now=5.0))
    assert (again.notice, again.event) == (None, None)
    assert again.alert == step.alert


def test_a_worse_severity_tells_again_even_who_acknowledged() -> None:
    step = after(fire(), ACK, fire("critical"))
    assert (step.notice, step.event) == ("firing", "alert_escalated")
    assert step.alert is not None
    assert (step.alert.state, step.alert.severity) == ("firing", "critical")
    assert after(fire("critical"), fire("warning")).alert == after(fire("critical")).alert


def test_acknowledging_tells_nobody_and_twice_is_once() -> None:
    step = after(fire(), ACK)
    assert (step.notice, step.event) == (None, "alert_acknowledged")
    assert step.alert is not None
    assert (step.alert.acknowledged_by, step.alert.note) == ("me", "looking")
    assert after(fire(), ACK, replace(ACK, by="you")) == Advance(step.alert)


def test_a_silence_ends_with_a_word_if_it_still_fires() -> None:
    assert after(fire(), QUIET, fire("critical")).notice is None
    assert after(fire(), QUIET, Tick(now=9.9)).event is None
    step = after(fire(), QUIET, Tick(now=10.0))
    assert (step.notice, step.event) == ("firing", "alert_unsilenced")
    assert after(fire(), QUIET, END).notice == "resolved"


def test_whoever_heard_of_it_hears_the_end_of_it() -> None:
    step = after(fire(), END)
    assert (step.notice, step.event) == ("resolved", "alert_resolved")
    assert step.alert is not None
    assert (step.alert.resolved_reason, step.alert.resolved_step) == ("cleared", 9)
    assert advance(step.alert, END) == Advance(step.alert)


@pytest.mark.parametrize("happening", [ACK, QUIET])
def test_nobody_acknowledges_what_does_not_fire(happening: Any) -> None:
    for before in ((), (HIT,), (fire(), END)):
        with pytest.raises(InvalidTransition):
            after(*before, happening)


def test_the_fingerprint_is_of_run_rule_and_slice() -> None:
    made = {fingerprint(*key) for key in (("r", "a", ""), ("r", "a", "b"), ("r", "ab", ""), ("ra", "", ""))}
    assert len(made) == 4
    assert all(len(one) == 16 for one in made)


_HAPPENINGS = st.sampled_from([HIT, fire(), fire("critical"), Lapse(), ACK, QUIET, Tick(now=5.0), Tick(now=50.0), END])


@given(st.lists(_HAPPENINGS, max_size=25))
def test_what_receivers_hear_makes_sense_whatever_happens(happenings: list[Any]) -> None:
    alert: Alert | None = None
    told: list[str] = []
    for happening in happenings:
        if alert is not None and alert.state == "resolved":
            alert = None  # the next one is another alert
        try:
            step = advance(alert, happening)
        except InvalidTransition:
            continue
        alert = step.alert
        told += [step.notice] if step.notice else []
        assert alert is None or alert.notified == (alert.state != "pending")
        assert alert is None or (alert.resolved_at is not None) == (alert.state == "resolved")
    open_now = alert is not None and alert.state not in {"pending", "resolved"}
    ends = told.count("resolved")
    assert not told or told[0] == "firing"
    assert all(not (a == b == "resolved") for a, b in itertools.pairwise(told))
    assert (told[-1:] == ["firing"]) == open_now
    assert ends <= told.count("firing")
