"""The four numbers under the verdict, each with its sparkline and the baseline it is judged against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.figures.axes import column
from tailwatch_dashboards.figures.sparkline import Sparkline, sparkline
from tailwatch_dashboards.types import Baseline, RunView, State, Verdict

MAX_POINTS = 200
"""Points of a sparkline; more cannot be told apart at its size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One figure of a card."""

    text: str
    label: str = ""
    interval: str = ""
    """Its 95 % interval in words; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadlineCard:
    """One headline number, ready to print."""

    metric: str
    title: str
    values: tuple[Value, ...]
    unit: str
    note: str
    spark: Sparkline | None
    spark_label: str
    state: State | None
    """Set where a rule on this number holds."""


def headline(view: RunView, *, verdict: Verdict) -> list[HeadlineCard]:
    """The cards of a run, in fixed order: kl_k3, P0.1/P99.9 of the log ratio, ess_token,
    envelope_width_low."""
    return [
        _card(view, verdict, "kl_k3", title="KL(infer ‖ train), k3", unit="nats/token", scale="log", least=1.0),
        _tails_card(view, verdict),
        _card(view, verdict, "ess_token", title="Effective sample share", unit="of tokens", least=0.05),
        _card(view, verdict, "envelope_width_low", title="Envelope width, p < 0.1", unit="nats", least=0.1),
    ]


def _card(
    view: RunView, verdict: Verdict, metric: str, *, title: str, unit: str, scale: str = "linear", least: float = 0.0
) -> HeadlineCard:
    value = _latest(view, metric)
    return HeadlineCard(
        metric=metric,
        title=title,
        values=(Value(text=fmt.number(value), interval=_interval(view, metric)),),
        unit=unit if value is not None else "",
        note=_note(view, metric, value),
        spark=sparkline(
            [_thin(column(view.series, metric))], band=_band(view.baseline, metric), scale=scale, least=least
        ),
        spark_label=f"{title} over the steps" if value is not None else "no curve yet",
        state=_state(verdict, metric),
    )


def _tails_card(view: RunView, verdict: Verdict) -> HeadlineCard:
    names = ("log_ratio_q001", "log_ratio_q999")
    low, high = (_latest(view, name) for name in names)
    return HeadlineCard(
        metric=names[0],
        title="Log-ratio tails",
        values=(
            Value(text=_signed(low), label="P0.1", interval=_interval(view, names[0])),
            Value(text=_signed(high), label="P99.9", interval=_interval(view, names[1])),
        ),
        unit="nats" if low is not None else "",
        note=_tails_note(view, low, high),
        spark=sparkline([_thin(column(view.series, name)) for name in names], scale="arcsinh", least=0.2),
        spark_label="P0.1 and P99.9 of the log ratio over the steps" if low is not None else "no curve yet",
        state=_state(verdict, "outside_2x"),
    )


def _latest(view: RunView, metric: str) -> float | None:
    return view.latest.metrics.get(metric) if view.latest else None


def _interval(view: RunView, metric: str) -> str:
    ends = view.latest.intervals.get(metric) if view.latest else None
    return "" if ends is None else f"95 % interval: {fmt.number(ends[0])} to {fmt.number(ends[1])}"


def _signed(value: float | None) -> str:
    text = fmt.number(value)
    return f"+{text}" if value is not None and value > 0 else text


def _state(verdict: Verdict, metric: str) -> State | None:
    return next((reason.state for reason in verdict.reasons if reason.metric == metric), None)


def _thin(values: Sequence[float | None]) -> list[float | None]:
    """Every n-th value counted from the last, so that the end of the curve is the value printed beside it."""
    stride = max(1, -(-len(values) // MAX_POINTS))
    return list(values[::-1][::stride][::-1])


def _band(baseline: Baseline | None, metric: str) -> tuple[float, float] | None:
    if baseline is None or metric not in baseline.median:
        return None
    middle, spread = baseline.median[metric], baseline.mad[metric]
    return (middle - spread if middle > spread else middle / 2, middle + spread)


def _note(view: RunView, metric: str, value: float | None) -> str:
    """The value against the run's own past, or why there is nothing to say."""
    if value is None:
        reason = view.latest.missing.get(metric) if view.latest else None
        return reason or "no value at the last step"
    if view.baseline is None or metric not in view.baseline.median:
        return "no baseline yet"
    usual = view.baseline.median[metric]
    against = f"{fmt.times(value / usual)} " if usual > 0 and metric != "ess_token" else ""
    return f"{against}baseline {fmt.number(usual)} ({view.baseline.label})"


def _tails_note(view: RunView, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no value at the last step"
    past = view.baseline.median if view.baseline else {}
    if view.baseline is None or "log_ratio_q001" not in past or "log_ratio_q999" not in past:
        return "no baseline yet"
    usual = f"{_signed(past['log_ratio_q001'])} … {_signed(past['log_ratio_q999'])}"
    return f"baseline {usual} ({view.baseline.label})"
