from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tailwatch_service.detection.classes import Declared
from tailwatch_service.detection.comparisons import Band
from tailwatch_service.detection.engine import JudgedStep, SliceState, State, judge, restarted
from tailwatch_service.detection.rules import RULES, Check, Material, Rule

DENSE = Declared(run_class="dense", asynchronous=False)
LINE = Rule(
    id="Line", title="Line", hits=2, window=3, clear_count=2,
    checks=(Check(metric="kl_k3", comparison=Band(warning=1.0, critical=2.0, clear=0.5)),),
)  # fmt: skip


def run(
    rule: Rule, values: Iterable[float | None], *, state: State | None = None, first: int = 0, **metrics: float
) -> tuple[list[str], dict[str, SliceState]]:
    """`step:transition` for each finding that is more than a hit; None: the step lacks the metric."""
    kept: dict[str, SliceState] = dict(state or {})
    found: list[str] = []
    for step, value in enumerate(values, start=first):
        given = {**metrics, **({} if value is None else {"kl_k3": value})}
        # Through JSON each time: what is stored is what goes on.
        kept = {key: SliceState.from_json(json.loads(json.dumps(one.to_json()))) for key, one in kept.items()}
        outcome = judge([rule], JudgedStep(step=step, metrics=given), kept, run=DENSE)
        kept = outcome.state
        found += [f"{step}:{f.transition}:{f.severity}" for f in outcome.findings if f.transition != "hit"]
    return found, kept


def events(rule: Rule, values: Iterable[float | None], **more: Any) -> list[str]:
    return run(rule, values, **more)[0]


def test_two_of_three_fire_and_two_quiet_clear() -> None:
    assert events(LINE, [1.5, 0.0, 0.0, 1.5]) == []
    assert events(LINE, [1.5, 0.0, 1.5, 0.7, 0.4, 0.4]) == ["2:fired:warning", "5:cleared:warning"]


def test_between_the_two_lines_nothing_clears() -> None:
    assert events(LINE, [1.5, 1.5, 0.4, 0.7, 0.4, 0.7, 0.4]) == ["1:fired:warning"]


def test_critical_needs_as_many_critical_steps() -> None:
    assert events(LINE, [1.5, 3.0, 3.0]) == ["1:fired:warning", "2:escalated:critical"]
    assert events(LINE, [3.0, 3.0]) == ["1:fired:critical"]


def test_it_does_not_fire_on_a_quiet_step() -> None:
    assert events(replace(LINE, warm_up=2), [1.5, 1.5, 0.0, 0.0]) == []
    assert events(replace(LINE, warm_up=2), [1.5, 1.5, 1.5]) == ["2:fired:warning"]


def test_after_clearing_old_hits_are_forgotten_and_the_cooldown_holds() -> None:
    values = [1.5, 1.5, 0.0, 0.0, 1.5, 1.5, 1.5, 1.5]
    assert events(LINE, values) == ["1:fired:warning", "3:cleared:warning", "5:fired:warning"]
    assert events(replace(LINE, cooldown=3), values) == ["1:fired:warning", "3:cleared:warning", "7:fired:warning"]


def test_a_step_without_a_value_is_neither_a_hit_nor_quiet_but_takes_its_place() -> None:
    assert events(LINE, [1.5, None, 1.5]) == ["2:fired:warning"]
    assert events(LINE, [1.5, None, None, 1.5]) == []
    assert events(LINE, [1.5, 1.5, 0.0, None, 0.0]) == ["1:fired:warning", "4:cleared:warning"]


def test_pending_says_whether_the_window_holds_a_hit() -> None:
    state: State = {}
    seen = []
    for step, value in enumerate([1.5, 0.0, 0.0, 0.0]):
        outcome = judge([LINE], JudgedStep(step=step, metrics={"kl_k3": value}), state, run=DENSE)
        state = outcome.state
        seen.append(outcome.pending["Line", ""])
    assert seen == [True, True, True, False]


def test_what_is_not_material_is_quiet() -> None:
    rule = replace(LINE, material=Material(metric="kl_k1", above=1e-5))
    assert events(rule, [1.5, 1.5], kl_k1=1e-7) == []
    assert events(rule, [1.5, 1.5], kl_k1=1e-3) == ["1:fired:warning"]


def test_rules_for_lag_0_pass_over_stale_steps() -> None:
    rule = replace(LINE, applies="zero_lag")
    assert events(rule, [1.5] * 5, lag_mean=2.0) == []
    assert events(rule, [1.5] * 2, lag_mean=0.0) == ["1:fired:warning"]
    assert events(rule, [1.5] * 2) == ["1:fired:warning"]


def test_rules_for_lag_0_judge_the_tokens_at_lag_0_of_mixed_steps() -> None:
    rule = replace(LINE, applies="zero_lag")
    assert events(rule, [0.1] * 3, lag_mean=2.0, kl_k3_lag0=1.5) == ["1:fired:warning"]
    assert events(rule, [9.0] * 3, lag_mean=2.0, kl_k3_lag0=0.1) == []
    # Judged as what they are: fresh tokens, by the line of their own class.
    fired = judge([rule], JudgedStep(step=1, metrics={"kl_k3": 0.1, "kl_k3_lag0": 3.0, "lag_mean": 2.0}), {}, run=DENSE)
    assert [(f.metric, f.value, f.severity, f.basis) for f in fired.findings] == [
        ("kl_k3_lag0", 3.0, "critical", "absolute line")
    ]


def test_mismatch_at_lag_0_is_found_in_an_asynchronous_run() -> None:
    rule = RULES["MismatchK3High"]
    stale = {"lag_mean": 1.5, "kl_k3": 5e-4}
    steps = [stale | {"kl_k3_lag0": 2e-3}, stale, stale | {"kl_k3_lag0": 3e-3}, stale, stale | {"kl_k3_lag0": 2e-3}]
    state: State = {}
    found = []
    for step, metrics in enumerate(steps):
        outcome = judge(
            [rule], JudgedStep(step=step, metrics=metrics), state, run=Declared(run_class="dense", asynchronous=True)
        )
        state = outcome.state
        found += [(step, f.transition, f.metric, f.basis) for f in outcome.findings if f.transition != "hit"]
    # A step without tokens at lag 0 takes no place in the window.
    assert found == [(4, "fired", "kl_k3_lag0", "line for dense")]


def test_another_attempt_begins_a_new_window_and_keeps_what_fires_and_the_past() -> None:
    found, state = run(RULES["KlSpike"], [1e-3] * 25 + [0.5])
    assert found == []
    again, _ = run(RULES["KlSpike"], [0.5], state=restarted(state))
    assert again == []
    fired, _ = run(RULES["KlSpike"], [0.5, 0.5], state=restarted(state))
    assert fired == ["1:fired:critical"]


def test_a_spike_fires_on_its_second_step_and_clears_on_the_fifth_quiet_one() -> None:
    healthy = [1e-3 * (1 + 0.1 * math.sin(i)) for i in range(40)]
    found = events(RULES["KlSpike"], [*healthy, 0.02, 0.02, 0.02, *healthy[:8]])
    assert found == ["41:fired:critical", "47:cleared:critical"]


def test_one_step_alone_never_fires() -> None:
    healthy = [1e-3 * (1 + 0.1 * math.sin(i)) for i in range(40)]
    assert events(RULES["KlSpike"], [*healthy, 10.0, *healthy]) == []


def test_spiking_steps_never_become_usual() -> None:
    healthy = [1e-3] * 30
    found, state = run(RULES["KlSpike"], [*healthy, *[0.1] * 200])
    assert found == ["31:fired:critical"]
    assert max(state["KlSpike:"].history["kl_k3"]["unknown"]) == 1e-3


def test_each_lag_has_a_past_of_its_own() -> None:
    state: State = {}
    found = []
    for step in range(120):
        lag = step % 4
        value = 1e-4 * 6.0**lag * (30.0 if step >= 112 and lag == 1 else 1.0)
        metrics = {"kl_k3": value, "lag_mean": float(lag)}
        outcome = judge([RULES["KlSpike"]], JudgedStep(step=step, metrics=metrics), state, run=DENSE)
        state = outcome.state
        found += [(step, f.transition) for f in outcome.findings if step >= 80]
    # The saw-tooth (1e-4 to 2e-2, for ever) is ordinary; 0.018 at lag 1 is not, although lag 3 is above it.
    assert found == [(113, "hit"), (117, "hit")]


def test_a_run_that_lives_above_the_line_never_makes_that_its_past() -> None:
    found, state = run(RULES["KlSpike"], [0.02] * 100)
    assert found == ["1:fired:warning"]
    assert "unknown" not in state["KlSpike:"].history.get("kl_k3", {})


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 3.0)), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_it_fires_exactly_where_a_plain_reading_of_the_definition_does(
    values: list[float | None], hits: int, extra: int
) -> None:
    rule = replace(LINE, hits=hits, window=hits + extra - 1)
    expected: list[str] = []
    window: list[int] = []
    active, quiet = 0, 0
    for step, value in enumerate(values):
        level = 0 if value is None else 2 if value > 2.0 else int(value > 1.0)
        window = [*window, level][-rule.window :]
        reach = 2 if window.count(2) >= hits else int(sum(x > 0 for x in window) >= hits)
        if level and reach > active:
            name = "escalated" if active else "fired"
            active, quiet = reach, 0
            expected.append(f"{step}:{name}:{('warning', 'critical')[active - 1]}")
        elif active:
            quiet = quiet if value is None else quiet + 1 if value < 0.5 else 0
            if quiet == 2 and value is not None:
                expected.append(f"{step}:cleared:{('warning', 'critical')[active - 1]}")
                active, quiet, window = 0, 0, []
    assert events(rule, values) == expected
