"""The verdict: a table of cases, from runs that must stay quiet to runs that must not."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tailwatch_dashboards.baseline import baseline
from tailwatch_dashboards.types import Limits, Verdict
from tailwatch_dashboards.verdict import limits_for, verdict
from tests.dashboards import fakes

FP8 = limits_for(precision="fp8", model_class="dense")
BF16 = limits_for(precision="bf16", model_class="dense")


def judged(table: pl.DataFrame, limits: Limits = FP8) -> Verdict:
    return verdict(table, limits=limits, baseline=baseline(table, limits=limits))


def flat(steps: int = 30, **columns: Any) -> pl.DataFrame:
    """Steps that all look the same: a quiet run, with the named metrics changed."""
    quiet: dict[str, float | None] = {
        "tokens": 1000.0,
        "kl_k3": 1e-4,
        "ess_token": 0.999,
        "outside_2x": 0.0,
        "tail_khat_upper": 0.4,
        "tail_khat_lower": 0.4,
        "envelope_width_low": 0.5,
        "invalid_share": 0.0,
    }
    values: dict[str, float | None] = quiet | columns
    schema = {"step": pl.Int64, **dict.fromkeys(values, pl.Float64)}
    return pl.DataFrame({"step": list(range(steps)), **{k: [v] * steps for k, v in values.items()}}, schema=schema)


@pytest.mark.parametrize("steps", [1, 3, 30, 200])
def test_a_healthy_fp8_run_is_healthy_at_every_length(steps: int) -> None:
    reading = judged(fakes.series("healthy", steps))
    assert reading.state == "healthy"
    assert reading.since_step == 0
    assert reading.reasons == ()


def test_rounding_noise_is_healthy_whatever_its_shape() -> None:
    noisy = flat(kl_k3=1e-13, tail_khat_upper=2.0, tail_khat_lower=1.4, envelope_width_low=1e-7)
    grown = noisy.with_columns(
        pl.when(pl.col("step") > 24).then(1e-5).otherwise(pl.col("envelope_width_low")).alias("envelope_width_low")
    )
    assert judged(grown, BF16).state == "healthy"
    assert "agree to rounding" in judged(grown, BF16).sentence


def test_a_collapsing_run_is_unhealthy_through_the_saw_tooth() -> None:
    for steps in range(40, 70):
        assert judged(fakes.series("collapsing", steps)).state == "unhealthy"
    reading = judged(fakes.series("collapsing", 40))
    assert reading.since_step == 23
    assert reading.reasons[0].rule == "MismatchK3High"
    assert "KL(infer ‖ train)" in reading.sentence


@pytest.mark.parametrize(
    ("limits", "columns", "state", "rule"),
    [
        (BF16, {"kl_k3": 2e-3}, "watch", "MismatchK3High"),
        (BF16, {"kl_k3": 2e-2}, "unhealthy", "MismatchK3High"),
        (FP8, {"kl_k3": 2e-3}, "healthy", None),
        (FP8, {"kl_k3": 2e-2}, "watch", "MismatchK3High"),
        (FP8, {"kl_k3": 6e-2}, "unhealthy", "MismatchK3High"),
        (BF16, {"ess_token": 0.9}, "watch", "EssLow"),
        (BF16, {"ess_token": 0.4}, "unhealthy", "EssLow"),
        (BF16, {"outside_2x": 2e-3}, "watch", "TailHeavy"),
        (BF16, {"outside_2x": 2e-3, "tail_khat_lower": 1.2}, "unhealthy", "TailHeavy"),
        (BF16, {"outside_2x": 5e-4, "tail_khat_lower": 1.2}, "healthy", None),
        (BF16, {"outside_2x": 2e-2}, "unhealthy", "TailHeavy"),
        (BF16, {"invalid_share": 1e-4}, "watch", "LogprobInvalid"),
        (BF16, {"invalid_share": 1e-2}, "unhealthy", "LogprobInvalid"),
        (BF16, {"kl_k3": None, "invalid_share": 1.0}, "unhealthy", "LogprobInvalid"),
    ],
)
def test_lines(limits: Limits, columns: dict[str, Any], state: str, rule: str | None) -> None:
    reading = judged(flat(**columns), limits)
    assert reading.state == state
    assert [reason.rule for reason in reading.reasons] == ([rule] if rule else [])


@pytest.mark.parametrize(("growth", "state"), [(1.5, "healthy"), (3.0, "watch"), (6.0, "unhealthy")])
def test_envelope_growth_is_against_the_runs_own_baseline(growth: float, state: str) -> None:
    grown = flat(80).with_columns(
        pl.when(pl.col("step") > 74).then(0.5 * growth).otherwise(0.5).alias("envelope_width_low")
    )
    assert judged(grown).state == state


def test_one_bad_step_is_not_enough_and_a_rule_is_left_after_five_quiet_ones() -> None:
    spiky = flat(40).with_columns(pl.when(pl.col("step") == 20).then(1.0).otherwise(pl.col("kl_k3")).alias("kl_k3"))
    assert judged(spiky, BF16).state == "healthy"
    over = pl.col("step").is_between(20, 24)
    for last, state in ((26, "unhealthy"), (29, "healthy")):
        bad = flat(last + 1).with_columns(pl.when(over).then(1.0).otherwise(pl.col("kl_k3")).alias("kl_k3"))
        assert judged(bad, BF16).state == state


def test_since_is_the_first_step_of_the_present_stretch() -> None:
    bad = flat(40).with_columns(pl.when(pl.col("step") >= 20).then(1.0).otherwise(pl.col("kl_k3")).alias("kl_k3"))
    assert judged(bad, BF16).since_step == 22


def test_nothing_to_judge_says_so() -> None:
    empty = verdict(flat(1).clear(), limits=BF16, baseline=None)
    assert (empty.state, empty.since_step) == ("no data", None)
    blank = judged(flat(7, kl_k3=None, ess_token=None))
    assert blank.state == "no data"
    assert "7 steps arrived" in blank.sentence


def test_a_table_without_a_metric_is_read_without_it() -> None:
    assert judged(flat(30).select("step", "kl_k3"), BF16).state == "healthy"


def test_doubts_are_named() -> None:
    undeclared = limits_for(precision=None, model_class=None)
    reading = verdict(flat(3), limits=undeclared, baseline=None)
    assert reading.provisional is not None
    assert "only 3 steps" in reading.provisional
    assert "not declared" in reading.provisional
    assert judged(flat(30)).provisional is None


def test_moe_is_judged_by_growth_only() -> None:
    moe = limits_for(precision="bf16", model_class="MoE 30B-A3B")
    assert judged(flat(80, kl_k3=3e-2), moe).state == "healthy"
    grown = flat(80, kl_k3=3e-3).with_columns(
        pl.when(pl.col("step") > 74).then(2e-2).otherwise(pl.col("kl_k3")).alias("kl_k3")
    )
    assert judged(grown, moe).state == "watch"


def test_the_baseline_leaves_out_steps_over_the_line() -> None:
    table = flat(80).with_columns(pl.when(pl.col("step") >= 40).then(1.0).otherwise(pl.col("kl_k3")).alias("kl_k3"))
    past = baseline(table, limits=BF16)
    assert past is not None
    assert past.median["kl_k3"] == pytest.approx(1e-4)
    assert max(past.steps) < 40


def test_the_baseline_moves_from_the_earliest_steps_to_the_window() -> None:
    assert baseline(flat(4), limits=BF16) is None
    early = baseline(flat(12), limits=BF16)
    assert early is not None
    assert early.label == "steps 0–11"
    steady = baseline(flat(100), limits=BF16)
    assert steady is not None
    assert steady.label == "steps 20–70"


def test_a_lost_reward_is_not_called_healthy_because_the_engines_agree() -> None:
    table = flat(kl_k3=1e-13, reward_mean=0.02).with_columns(
        pl.when(pl.col("step") < 1).then(0.55).otherwise(pl.col("reward_mean")).alias("reward_mean")
    )
    reading = judged(table, BF16)
    assert reading.state == "unhealthy"
    assert [reason.rule for reason in reading.reasons] == ["RewardDrop"]
    assert "Not a mismatch" in reading.sentence
    assert "0.55" in reading.sentence


@pytest.mark.parametrize("reward", [0.4, 0.0, -3.0])
def test_a_steady_reward_says_nothing(reward: float) -> None:
    assert judged(flat(reward_mean=reward), BF16).state == "healthy"


def test_a_reward_that_halves_is_watched_beside_a_mismatch() -> None:
    table = flat(kl_k3=0.2, reward_mean=0.2).with_columns(
        pl.when(pl.col("step") < 10).then(0.5).otherwise(pl.col("reward_mean")).alias("reward_mean")
    )
    reading = judged(table)
    assert {reason.rule: reason.state for reason in reading.reasons} == {
        "MismatchK3High": "unhealthy",
        "RewardDrop": "watch",
    }
    assert "drifted apart" in reading.sentence


def test_a_sentence_about_an_earlier_step_says_which() -> None:
    """The cards beside it show the latest step: two numbers of one metric must not look like a contradiction."""
    table = flat(30, kl_k3=0.2)
    assert "at step" not in judged(table).sentence
    quiet = pl.when(pl.col("step") == 29).then(1e-4).otherwise(pl.col("kl_k3")).alias("kl_k3")
    reading = judged(table.with_columns(quiet))
    assert reading.state != "healthy"
    assert reading.reasons[0].sentence.endswith(", at step 28")
