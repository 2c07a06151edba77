"""Synthetic runs for the dashboards' tests: healthy, collapsing and control, shaped like the lab's, without a
service."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import polars as pl

from tailwatch_dashboards.baseline import baseline
from tailwatch_dashboards.types import EventMark, MetricText, RunRow, RunView, StepFacts, TailFit
from tailwatch_dashboards.verdict import limits_for, verdict

NOW = 1_800_000_000.0
EDGES = (
    0,
    1e-6,
    1e-5,
    1e-4,
    3e-4,
    1e-3,
    3e-3,
    0.01,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.9,
    0.99,
    0.999,
    0.9999,
    1,
)
QUANTILES = {
    "q001": -3.1,
    "q02": -1.6,
    "q25": -0.35,
    "q50": -0.004,
    "q75": 0.33,
    "q98": 1.4,
    "q999": 2.6,
}
"""Quantiles of d in units of its spread: left-heavy, as in the lab."""


def wobble(step: int) -> float:
    """A repeatable factor around 1."""
    return 1 + 0.18 * math.sin(12.9898 * step) + 0.08 * math.sin(3.7 * step)


def scale_of(kind: str, step: int) -> float:
    """Spread of d at a step: flat, growing with a saw-tooth of 16 steps, or rounding noise."""
    if kind == "healthy":
        return 0.055 * wobble(step)
    if kind == "control":
        return 1.5e-7 * wobble(step)
    lag = step % 16
    return (0.05 + 0.022 * lag * (1 + step / 24)) * wobble(step)


def series(kind: str, steps: int, *, start: int = 0) -> pl.DataFrame:
    """Column `step` and the metrics the pages need."""
    rows: list[dict[str, Any]] = []
    for step in range(start, start + steps):
        s = scale_of(kind, step)
        heavy = kind == "collapsing"
        rows.append(
            {
                "step": step,
                "tokens": 3450.0,
                "kl_k1": s * s / 2 * (-0.3 if step % 11 == 3 else 0.8),
                "kl_k3": s * s / 2 * (1 + (3 * s if heavy else 0)),
                **{
                    f"log_ratio_{name}": factor * s * (2.5 if heavy and factor < -3 else 1) * 2
                    for name, factor in QUANTILES.items()
                },
                "ess_token": math.exp(-s * s),
                "outside_2x": min(0.3, s * s * 0.3) if s > 0.01 else 0.0,
                "envelope_width_low": 6.0 * s,
                "tail_khat_upper": 0.3 + s,
                "tail_khat_lower": 0.4 + s if s > 0.01 else 0.9,
                "invalid_share": 0.0,
            }
        )
    return pl.DataFrame(rows)


def envelope_table(scale: float) -> pl.DataFrame:
    """ENVELOPE_SCHEMA with a fan at low probability and one empty bin."""
    rows = []
    for index, (low, high) in enumerate(pairwise(EDGES)):
        width = scale * 6 * (1 - index / 19.5) ** 1.5 + scale * 0.02
        empty = index == 0
        tokens = 0 if empty else 20 + index * index * 9
        rows.append(
            (float(low), float(high), tokens, *((None,) * 3 if empty else (-1.3 * width, -0.02 * width, width)))
        )
    return pl.DataFrame(rows, schema=["lower", "upper", "tokens", "p2", "p50", "p98"], orient="row")


def survival_table(scale: float) -> pl.DataFrame:
    """SURVIVAL_SCHEMA: straight lines on log-log."""
    rows = []
    for tail, slope in (("upper", 0.12 / max(scale, 1e-4)), ("lower", 0.09 / max(scale, 1e-4))):
        for index in range(1, 60):
            ratio = 2 ** (index / 8)
            share = 0.4 * ratio ** -min(slope, 80.0)
            if share > 1 / 3450:
                rows.append((tail, ratio, share))
    return pl.DataFrame(rows, schema=["tail", "ratio", "share"], orient="row")


def _text(name: str, title: str, unit: str, family: str, **more: Any) -> MetricText:
    said = {"formula": "", "description": f"What {title} says."} | more
    return MetricText(name=name, title=title, unit=unit, family=family, **said)


METRICS = {
    text.name: text
    for text in (
        _text(
            "kl_k3",
            "KL, estimator k3",
            "nats",
            "kl",
            formula=r"\mathbb{E}[e^{d} - 1 - d]",
            harm="higher",
            kl_direction="KL(infer || train)",
            healthy="below 1e-3 dense bf16, below 1e-2 fp8",
            reference="Schulman 2020",
            aliases={"verl": "rollout_corr/k3_kl", "prime-rl": "mismatch_kl"},
            missing_when="no valid tokens",
        ),
        _text("kl_k1", "KL, estimator k1", "nats", "kl", kl_direction="KL(infer || train)"),
        _text("ess_token", "Effective sample share", "share", "ess", harm="lower"),
        _text("log_ratio_q001", "log ratio, P0.1", "nats", "ratios"),
        _text("tail_khat_upper", "Tail index, upper", "1", "tails", harm="higher"),
        _text("envelope_width_low", "Envelope width, p < 0.1", "nats", "envelope", harm="higher"),
        _text("invalid_share", "Invalid log-probs", "share", "validity", harm="higher"),
        _text("tokens_invalid_positive", "Log-probs above 1e-3", "tokens", "validity", harm="higher"),
        _text("identical_share", "Identical on both sides", "share", "validity"),
    )
}


def facts(table: pl.DataFrame, step: int, **changes: Any) -> StepFacts:
    """The facts of one step of a table."""
    row = table.filter(pl.col("step") == step).to_dicts()[0]
    metrics = {name: float(value) for name, value in row.items() if name != "step" and value is not None}
    metrics |= {"identical_share": 0.031, "tokens_invalid_positive": 0.0, "lag_mean": 7.5, "lag_max": 15.0}
    base = StepFacts(
        step=step,
        phase="rollout",
        revision=0,
        coverage=1.0,
        tokens=3450,
        sequences=128,
        closed_at=NOW - 4,
        metrics=metrics,
        missing={"tail_hill_upper": "9 distinct exceedances"},
    )
    return dataclasses.replace(base, **changes)


def run_view(
    kind: str = "healthy", steps: int = 128, *, chosen: int | None = None, name: str = "grpo-7b", **changes: Any
) -> RunView:
    """A whole run page's worth of fakes; steps 0 is a run without any."""
    table = series(kind, steps) if steps else series(kind, 1).clear()
    precision = {"healthy": "fp8", "collapsing": "fp8", "control": "fp32"}[kind]
    last = steps - 1 if steps else None
    shown = last if chosen is None else chosen
    syncs = [
        EventMark(kind="weight_sync", at=NOW - 2 * (steps - step), step=step, text=f"version {step}")
        for step in range(0, steps, 16)
    ]
    limits = limits_for(precision=precision, model_class="dense")
    past = baseline(table, limits=limits)
    scale = scale_of(kind, shown) if shown is not None else 0.0
    view = RunView(
        run_id="r-" + kind,
        project="math",
        name=name,
        activity="running",
        attempt=1,
        created_at=NOW - 900,
        last_seen_at=NOW - 4,
        last_step=last,
        config={
            "precision": precision,
            "framework": "lab",
            "model_class": "dense",
            "temperature": 1.0,
            "staleness_bound": 16,
        },
        limits=limits,
        series=table,
        recent=table.tail(400),
        baseline=past,
        latest=facts(table, last) if last is not None else None,
        chosen=facts(table, shown) if shown is not None else None,
        envelope=envelope_table(scale) if shown is not None else None,
        baseline_envelope=envelope_table(scale_of(kind, 3)) if past else None,
        survival=survival_table(scale) if shown is not None else None,
        fits=(TailFit(tail="lower", k=0.6, sigma=0.3, threshold=1.3, share=0.05),)
        if shown is not None and kind != "control"
        else (),
        events=tuple(syncs),
        metrics=METRICS,
    )
    return dataclasses.replace(view, **changes)


def run_row(kind: str = "healthy", steps: int = 128, *, name: str = "grpo-7b") -> RunRow:
    """A line of the run list."""
    view = run_view(kind, steps, name=name)
    reading = verdict(view.recent, limits=view.limits, baseline=view.baseline)
    return RunRow(
        run_id=view.run_id,
        project=view.project,
        name=name,
        activity="running",
        verdict=reading,
        k3=tuple(view.series["kl_k3"].to_list()[-100:]),
        last_step=view.last_step,
        last_seen_at=view.last_seen_at,
        tokens=3450 if steps else None,
        precision=str(view.config["precision"]),
        framework="lab",
    )
