from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_service.detection.comparisons import Band, Growth, RobustZ
from tailwatch_service.detection.overrides import RuleError, apply, to_json
from tailwatch_service.detection.rules import RULES


def refused(changes: Any) -> dict[str, str]:
    with pytest.raises(RuleError) as caught:
        apply(changes)
    return {error.column or "": error.reason for error in caught.value.errors}


def test_what_a_rule_is_written_as_it_is_read_as() -> None:
    written = json.loads(json.dumps({name: to_json(rule) for name, rule in RULES.items()}))
    assert apply(written) == dict(RULES)


def test_a_rule_and_its_one_comparison_are_changed_together() -> None:
    made = apply({"KlSpike": {"hits": 3, "window": 5, "warning": 5.0, "guard": []}})["KlSpike"]
    comparison = made.checks[0].comparison
    assert isinstance(comparison, RobustZ)
    assert (made.hits, made.window, comparison.warning, comparison.guard) == (3, 5, 5.0, ())
    assert comparison.critical == 8.0


def test_a_rule_of_ones_own_is_a_row() -> None:
    checks = [{"metric": "envelope_width_low", "kind": "growth", "warning": 2, "critical": 4}]
    made = apply({"EnvelopeGrowth": {"title": "Envelope grows", "hits": 3, "window": 5, "checks": checks}})
    assert made["EnvelopeGrowth"].checks[0].comparison == Growth(warning=2.0, critical=4.0)
    ess = [{"metric": "ess_token", "kind": "band", "warning": 0.95, "critical": 0.5, "direction": "below"}]
    assert apply({"EssLow": {"checks": ess}})["EssLow"].checks[0].comparison == Band(
        warning=0.95, critical=0.5, direction="below"
    )


def test_unknown_names_come_with_the_nearest_ones() -> None:
    assert "KlSpike" in refused({"KlSpiek": {"enabled": False}})["KlSpiek"]
    checks = [{"metric": "kl_k4", "kind": "band", "warning": 1}]
    assert "kl_k3" in refused({"Mine": {"checks": checks}})["Mine.checks.0.metric"]
    assert "warning" in refused({"KlSpike": {"warnign": 1}})["KlSpike.warnign"]
    assert "robust_z" in refused({"Mine": {"checks": [{"metric": "kl_k3", "kind": "z"}]}})["Mine.checks.0.kind"]


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"hits": 5}, "KlSpike.hits", "5 of 3 steps can never be reached"),
        ({"hits": 0}, "KlSpike.hits", "0 is not a whole number of 1 .. 256"),
        ({"window": 257}, "KlSpike.window", "1 .. 256"),
        ({"window": 2.5}, "KlSpike.window", "2.5"),
        ({"hits": True}, "KlSpike.hits", "True"),
        ({"warning": float("nan")}, "KlSpike.warning", "nan is not a finite number"),
        ({"warning": float("inf")}, "KlSpike.warning", "inf"),
        ({"warning": "4"}, "KlSpike.warning", "'4'"),
        ({"warning": 9.0}, "KlSpike.critical", "8 is reached before the warning's 9"),
        ({"clear": 4.5}, "KlSpike.clear", "would clear as it fires"),
        ({"min_history": 51}, "KlSpike.min_history", "2 .. 50"),
        ({"guard": [2.0, 1.0]}, "KlSpike.guard", "does not rise"),
        ({"applies": "sometimes"}, "KlSpike.applies", "zero_lag"),
        ({"enabled": 1}, "KlSpike.enabled", "true or false"),
        ({"material": {"metric": "kl", "above": 1}}, "KlSpike.material.metric", "is not a metric"),
        ({"checks": []}, "KlSpike.checks", "1 to 16"),
        ({"title": ""}, "KlSpike.title", "1 to 120"),
    ],
)
def test_what_cannot_work_is_named_with_its_value(change: dict[str, Any], path: str, reason: str) -> None:
    assert reason in refused({"KlSpike": change})[path]


def test_everything_is_found_at_once() -> None:
    found = refused({"KlSpike": {"hits": 9, "warning": "x"}, "Nothing": {}, "StreamMissing": {"window": 0}})
    assert set(found) >= {"KlSpike.warning", "Nothing", "StreamMissing.window"}


def test_silence_is_no_metric_of_a_step_and_metrics_are_no_silence() -> None:
    band = [{"metric": "step_silence", "kind": "band", "warning": 1}]
    assert "is not a metric" in refused({"Mine": {"checks": band}})["Mine.checks.0.metric"]
    silent = {"warning_steps": 2, "critical_steps": 5, "warning_floor_s": 60, "critical_floor_s": 300}
    absence = [{"metric": "kl_k3", "kind": "absence", **silent}]
    assert "is not a metric" in refused({"Mine": {"checks": absence}})["Mine.checks.0.metric"]


def test_changes_lie_over_the_rules_given() -> None:
    base = {"KlSpike": replace(RULES["KlSpike"], hits=1)}
    assert apply({"KlSpike": {"window": 7}}, base=base)["KlSpike"].hits == 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(
    ["hits", "window", "warning", "critical", "clear", "checks", "guard", "material", "applies", "x"]
)


@given(
    st.dictionaries(
        st.sampled_from(["KlSpike", "TailHeavy", "StreamMissing", "Mine", ""]), st.dictionaries(_fields, _json)
    )
)
def test_any_table_is_applied_or_refused_with_reasons(changes: dict[str, Any]) -> None:
    reasons: list[str | None] = []
    try:
        made = apply(changes)
    except RuleError as error:
        reasons = [one.column and one.reason for one in error.errors] or [None]
        made = {}
    assert all(reasons)
    assert all(rule.hits <= rule.window for rule in made.values())
