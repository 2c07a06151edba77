"""Is this run healthy: one state, one sentence, and since when. Pure: a table of steps in, a Verdict out.

A first reading, not the rule engine: absolute lines by declared class and growth over the run's own baseline,
each over 3 of the last 5 steps. Three things are special. Scale-free figures (the tail index, growth of a
width) count only where the tail is material, so that a run whose engines agree to 1e-7 stays quiet whatever
the shape of its rounding noise. And a state, once reached, is left only after five steps without a hit, so
that the saw-tooth between weight syncs does not make the page flicker. And a run whose reward is gone is never
called healthy because its engines agree: the sentence then says that the cause lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.types import STATES, Baseline, Limits, Reason, Verdict

WINDOW, HITS = 5, 3
"""A rule holds when it is broken in 3 of the last 5 steps."""

MATERIAL_WIDTH = 0.1
"""Nats: an envelope narrower than this harms nobody, however fast it grows."""

FEW_STEPS = 10
"""Below this many steps a reading is called early."""

LOW_PRECISION = ("fp8", "int8", "int4", "int6", "w8a8", "w4a", "fp4", "nf4", "awq", "gptq", "e4m3", "e5m2")

METRICS = (
    "tokens", "kl_k1", "kl_k3", "ess_token", "outside_2x", "tail_khat_upper", "tail_khat_lower", "envelope_width_low",
    "log_ratio_q001", "log_ratio_q999", "invalid_share", "reward_mean",
)  # fmt: skip
"""Columns the verdict reads; those a table lacks are taken as missing."""

Row = Mapping[str, float | None]


def limits_for(*, precision: str | None, model_class: str | None) -> Limits:
    """The lines of a run's class; dense bf16, the strictest, where nothing is declared."""
    precision_text, class_text = (precision or "").lower(), (model_class or "").lower()
    declared = bool(precision_text or class_text)
    if "moe" in class_text:
        return Limits(
            label="MoE",
            k3_watch=None,
            k3_unhealthy=None,
            outside_2x_watch=1e-2,
            outside_2x_unhealthy=1e-1,
            declared=declared,
        )
    coarse = any(mark in precision_text for mark in LOW_PRECISION)
    if coarse or "vlm" in class_text:
        label = precision_text if coarse else "VLM"
        return Limits(
            label=label,
            k3_watch=1e-2,
            k3_unhealthy=5e-2,
            outside_2x_watch=1e-2,
            outside_2x_unhealthy=5e-2,
            declared=declared,
        )
    label = f"dense {precision_text or 'bf16'}"
    return Limits(
        label=label,
        k3_watch=1e-3,
        k3_unhealthy=1e-2,
        outside_2x_watch=1e-3,
        outside_2x_unhealthy=1e-2,
        declared=declared,
    )


def verdict(table: pl.DataFrame, *, limits: Limits, baseline: Baseline | None) -> Verdict:
    """The state of a run after the last step of a table.

    Args:
        table: column `step` ascending and the metrics of METRICS it has, null where missing; the last few
            hundred steps suffice.
        limits: the lines of the run's class.
        baseline: the run's own past; None while there is none, and growth is then not judged.
    """
    if table.height == 0:
        return Verdict(state="no data", sentence="No steps yet: nothing has been judged.", since_step=None)
    rows = list(_with_reward_lost(table).iter_rows(named=True))
    steps = [int(row["step"]) for row in rows]
    judged = [row for row in rows if row.get("kl_k3") is not None or _value(row, "invalid_share") > 0]
    if not judged:
        sentence = (
            f"{_steps(len(rows))} arrived, but none has a comparable log-prob on both sides: nothing can be judged."
        )
        return Verdict(state="no data", sentence=sentence, since_step=steps[0])
    levels = _smoothed([_broken(row, limits=limits, baseline=baseline) for row in rows])
    states = [max(level.values(), default=1) for level in levels]
    since = _stretch_start(steps, states)
    state = STATES[states[-1]]
    provisional = _provisional(len(judged), limits=limits)
    if state == "healthy":
        return Verdict(
            state=state,
            sentence=_healthy_sentence(judged[-1], limits=limits),
            since_step=since,
            provisional=provisional,
        )
    # A lost reward may be the consequence of a mismatch: what the engines do is said first.
    worst = sorted(levels[-1].items(), key=lambda item: (item[0] == "RewardDrop", -item[1]))
    last_firing = {rule: _last_row(rows, rule, limits=limits, baseline=baseline) for rule, _ in worst}
    reasons = tuple(
        Reason(
            rule=rule,
            state=STATES[level],
            metric=_RULES[rule][1],
            sentence=_RULES[rule][2](last_firing[rule], limits, baseline) + _when(last_firing[rule], steps[-1]),
        )
        for rule, level in worst
    )
    return Verdict(
        state=state,
        sentence=_bad_sentence(reasons, judged[-1]),
        since_step=since,
        reasons=reasons,
        provisional=provisional,
    )


def _when(row: Row, latest: int) -> str:
    """The step a sentence speaks of, where it is not the latest: the numbers beside it are of that one."""
    step = int(_value(row, "step"))
    return "" if step == latest else f", at step {step}"


def _with_reward_lost(table: pl.DataFrame) -> pl.DataFrame:
    """The table with `reward_recent`, the median of 5 steps, `reward_best`, the highest of these so far, and
    `reward_lost`, the share of it that is gone; null where the best is not positive."""
    if "reward_mean" not in table.columns:
        return table
    recent = pl.col("reward_mean").rolling_median(WINDOW, min_samples=1)
    with_best = table.with_columns(reward_recent=recent).with_columns(reward_best=pl.col("reward_recent").cum_max())
    lost = 1 - pl.col("reward_recent") / pl.col("reward_best")
    return with_best.with_columns(reward_lost=pl.when(pl.col("reward_best") > 0).then(lost))


def _broken(row: Row, *, limits: Limits, baseline: Baseline | None) -> dict[str, int]:
    """The severity (2 watch, 3 unhealthy) of each rule a step breaks."""
    found = {name: rule(row, limits, baseline) for name, (rule, _, _) in _RULES.items()}
    return {name: level for name, level in found.items() if level}


def _smoothed(broken: list[dict[str, int]]) -> list[dict[str, int]]:
    """Rules that hold at each step: broken in 3 of the last 5 steps, and until 5 steps pass without a hit."""
    held: list[dict[str, int]] = []
    for index in range(len(broken)):
        window = broken[max(0, index - WINDOW + 1) : index + 1]
        now: dict[str, int] = {}
        for rule in _RULES:
            hits = sorted((step.get(rule, 0) for step in window), reverse=True)
            before = held[-1].get(rule, 0) if held else 0
            needed = 1 if rule == "LogprobInvalid" else HITS
            reached = hits[needed - 1] if len(hits) >= needed else 0
            level = max(reached, min(before, hits[0]))
            if level:
                now[rule] = level
        held.append(now)
    return held


def _stretch_start(steps: list[int], states: list[int]) -> int:
    """First step of the last stretch of equal states."""
    index = len(states) - 1
    while index > 0 and states[index - 1] == states[-1]:
        index -= 1
    return steps[index]


def _last_row(rows: list[dict[str, float | None]], rule: str, *, limits: Limits, baseline: Baseline | None) -> Row:
    """The latest step that broke a rule: the one its sentence speaks of."""
    return next(row for row in reversed(rows) if _RULES[rule][0](row, limits, baseline))


def _value(row: Row, name: str) -> float:
    """A metric of a step, or 0 where it is missing: a missing value breaks no upper line."""
    value = row.get(name)
    return 0.0 if value is None else value


def _level(value: float, watch: float, unhealthy: float) -> int:
    return 3 if value > unhealthy else 2 if value > watch else 0


def _k3_high(row: Row, limits: Limits, baseline: Baseline | None) -> int:
    k3 = _value(row, "kl_k3")
    if limits.k3_watch is not None and limits.k3_unhealthy is not None:
        return _level(k3, limits.k3_watch, limits.k3_unhealthy)
    usual = baseline.median.get("kl_k3") if baseline else None
    return _level(k3, max(4 * usual, 1e-3), max(10 * usual, 1e-3)) if usual is not None else 0


def _k3_sentence(row: Row, limits: Limits, baseline: Baseline | None) -> str:
    k3 = _value(row, "kl_k3")
    if limits.k3_watch is None:
        usual = baseline.median["kl_k3"] if baseline else float("nan")
        return f"KL(infer ‖ train) is {fmt.number(k3)} nats per token, {fmt.times(k3 / usual)} the run's own baseline"
    line = f"{fmt.times(k3 / limits.k3_watch)} the {limits.label} line of {fmt.limit(limits.k3_watch)}"
    return f"KL(infer ‖ train) is {fmt.number(k3)} nats per token, {line}"


def _tail_heavy(row: Row, limits: Limits, _baseline: Baseline | None) -> int:
    outside = _value(row, "outside_2x")
    level = _level(outside, limits.outside_2x_watch, limits.outside_2x_unhealthy)
    khat = max(_value(row, "tail_khat_upper"), _value(row, "tail_khat_lower"))
    return 3 if level and khat > 1 else level


def _tail_sentence(row: Row, _limits: Limits, _baseline: Baseline | None) -> str:
    khat = max(_value(row, "tail_khat_upper"), _value(row, "tail_khat_lower"))
    share = f"{fmt.number(100 * _value(row, 'outside_2x'))} % of tokens have a ratio beyond ×2 or below ×½"
    return f"{share} (tail index k̂ {fmt.number(khat)})" if khat > 0.7 else share


def _ess_low(row: Row, _limits: Limits, _baseline: Baseline | None) -> int:
    ess = row.get("ess_token")
    return 0 if ess is None else 3 if ess < 0.5 else 2 if ess < 0.95 else 0


def _ess_sentence(row: Row, _limits: Limits, _baseline: Baseline | None) -> str:
    return f"the importance weights leave {fmt.number(100 * _value(row, 'ess_token'))} % of the tokens effective"


def _invalid(row: Row, _limits: Limits, _baseline: Baseline | None) -> int:
    return _level(_value(row, "invalid_share"), 0.0, 1e-3)


def _invalid_sentence(row: Row, _limits: Limits, _baseline: Baseline | None) -> str:
    share = fmt.number(100 * _value(row, "invalid_share"))
    return f"{share} % of tokens carry a log-prob that no model can have: not finite, or above 0"


def _envelope_growth(row: Row, _limits: Limits, baseline: Baseline | None) -> int:
    usual = baseline.median.get("envelope_width_low") if baseline else None
    width = _value(row, "envelope_width_low")
    if usual is None or usual <= 0 or width < MATERIAL_WIDTH:
        return 0
    return _level(width / usual, 2.0, 4.0)


def _envelope_sentence(row: Row, _limits: Limits, baseline: Baseline | None) -> str:
    usual = baseline.median["envelope_width_low"] if baseline else float("nan")
    width = _value(row, "envelope_width_low")
    return (
        f"rare tokens (p < 0.1) spread over {fmt.number(width)} nats, {fmt.times(width / usual)} the run's own baseline"
    )


def _reward_drop(row: Row, _limits: Limits, _baseline: Baseline | None) -> int:
    return _level(_value(row, "reward_lost"), 0.5, 0.8)


def _reward_sentence(row: Row, _limits: Limits, _baseline: Baseline | None) -> str:
    recent, best = _value(row, "reward_recent"), _value(row, "reward_best")
    return f"the mean reward fell to {fmt.number(recent)}, from {fmt.number(best)} at its best"


_Rule = Callable[[Row, Limits, Baseline | None], int]
_Sentence = Callable[[Row, Limits, Baseline | None], str]
_RULES: dict[str, tuple[_Rule, str, _Sentence]] = {
    "LogprobInvalid": (_invalid, "invalid_share", _invalid_sentence),
    "MismatchK3High": (_k3_high, "kl_k3", _k3_sentence),
    "TailHeavy": (_tail_heavy, "outside_2x", _tail_sentence),
    "EssLow": (_ess_low, "ess_token", _ess_sentence),
    "EnvelopeGrowth": (_envelope_growth, "envelope_width_low", _envelope_sentence),
    "RewardDrop": (_reward_drop, "reward_mean", _reward_sentence),
}
"""By rule: the severity of a step, the metric to look at, and the sentence. Order settles ties."""


def _healthy_sentence(row: Row, *, limits: Limits) -> str:
    k3, ess = row.get("kl_k3"), row.get("ess_token")
    if k3 is not None and k3 < 1e-8:
        return (
            f"Trainer and inference engine agree to rounding: KL {fmt.number(k3)} nats per token, no tail to speak of."
        )
    line = f", under the {limits.label} line of {fmt.limit(limits.k3_watch)}" if limits.k3_watch is not None else ""
    effective = f"; {fmt.number(100 * ess)} % of the tokens stay effective" if ess is not None else ""
    return f"Trainer and inference engine agree: KL {fmt.number(k3)} nats per token{line}{effective}."


def _bad_sentence(reasons: tuple[Reason, ...], last: Row) -> str:
    far = reasons[0].state == "unhealthy"
    opening = "The two engines have drifted apart" if far else "The two engines are drifting apart"
    if reasons[0].rule == "LogprobInvalid":
        opening = "The log-probs that arrive are not sound"
    if {reason.rule for reason in reasons} == {"RewardDrop"}:
        agree = f"trainer and inference engine agree (KL {fmt.number(last.get('kl_k3'))} nats per token)"
        return f"Not a mismatch: {reasons[0].sentence}, while {agree}. Look for the cause elsewhere."
    return f"{opening}: {reasons[0].sentence}."


def _provisional(judged: int, *, limits: Limits) -> str | None:
    doubts = [
        f"only {_steps(judged)} judged" if judged < FEW_STEPS else "",
        "" if limits.declared else "precision not declared, judged as dense bf16",
    ]
    return "; ".join(doubt for doubt in doubts if doubt) or None


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
