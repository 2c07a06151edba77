"""Semantics lint: what two columns of log-probs mean is wrong more often than their values. Named at the first batch.

Two kinds of evidence: what the user declared (temperature, top-p, log-prob mode) and what the arrays show (fillers,
shifts, copies, probabilities in place of log-probs). Pure: no state, no I/O, at most `MAX_TOKENS` tokens looked at;
a batch without a finding is not proved right, a finding is worth reading before the first curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.lint_arrays import Found, Head, fillers, masks, pairs, values


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticsFinding:
    """One thing that makes the comparison of the two sides mean something else than it should."""

    code: str
    """Stable, for counting and silencing, for example `misaligned`."""
    message: str
    """What, where, and what to do about it."""


def check_semantics(batch: Batch, declared: Mapping[str, Any]) -> list[SemanticsFinding]:
    """Everything suspicious about what a batch means.

    Args:
        batch: the first batch of a run, or any.
        declared: the run's configuration as the user gave it; read are `temperature`, `train_temperature` (what the
            training side divides its logits by; default: the same temperature), `top_p`, `top_k`, `min_p`,
            `logprobs_mode` and `framework`. All optional. The modes: `raw` (before any sampling setting),
            `processed` (after all of them; both also spelt as vLLM does), `scaled` (after the temperature, before
            top-p and top-k: SGLang's default).

    Returns:
        Findings, what was declared first; empty where nothing is suspicious. Never raises for a sound batch.
    """
    framework = str(declared.get("framework") or batch.meta.framework or "").lower()
    head = Head.of(batch, framework=framework)
    found = [*_declared(declared), *masks(head), *fillers(head), *values(head), *pairs(head)]
    return [SemanticsFinding(code=code, message=message) for code, message in found]


def _declared(declared: Mapping[str, Any]) -> Found:
    numbers: dict[str, float | None] = {}
    for name in ("temperature", "train_temperature", "top_p", "top_k", "min_p"):
        numbers[name] = _number(declared.get(name))
        if declared.get(name) is not None and numbers[name] is None:
            yield "declared-unreadable", f"{name} is declared as {declared[name]!r:.80}, which is no number"
    mode = declared.get("logprobs_mode")
    kind = None if mode is None else str(mode).lower().removesuffix("_logprobs")
    if kind is not None and kind not in {"raw", "processed", "scaled"}:
        yield (
            "declared-unreadable",
            f"logprobs_mode is declared as {mode!r:.80}, expected raw, processed or scaled"
            + ("; logits are not comparable between engines" if "logits" in kind else ""),
        )
        kind = None
    temperature = numbers["temperature"]
    if temperature == 0:
        yield (
            "greedy",
            "temperature 0: greedy tokens are not samples of the policy, so neither ratios nor divergences of them "
            "mean anything; record sampled tokens, or a stream of their own for evaluation",
        )
    elif temperature is not None:
        yield from _temperature(temperature, numbers["train_temperature"], kind)
    truncation = [
        f"{name} {value:g}"
        for name, value, full in (
            ("top_p", numbers["top_p"], (1.0,)),
            ("top_k", numbers["top_k"], (-1.0, 0.0)),
            ("min_p", numbers["min_p"], (0.0,)),
        )
        if value is not None and value not in full
    ]
    if truncation:
        yield from _truncation(" and ".join(truncation), kind)


def _temperature(temperature: float, train_temperature: float | None, kind: str | None) -> Found:
    train = temperature if train_temperature is None else train_temperature
    if kind is None:
        if temperature != 1:
            yield (
                "logprobs-mode-undeclared",
                f"temperature {temperature:g} without logprobs_mode: vLLM reports raw log-probs (temperature 1) unless "
                "started with logprobs_mode processed_logprobs; declare logprobs_mode='raw' or 'processed'",
            )
        return
    infer = 1.0 if kind == "raw" else temperature
    if infer != train:
        yield (
            "temperature-mismatch",
            f"{kind} log-probs on the inference side are at temperature {infer:g}, the training side divides its "
            f"logits by {train:g}: every ratio is off by the temperature. Use processed log-probs with temperature "
            f"{temperature:g} on both sides"
            + ("" if train_temperature is not None else "; if training does not divide, declare train_temperature=1"),
        )
    elif infer != temperature:
        yield (
            "temperature-ignored",
            f"both sides are at temperature {infer:g} but the tokens were sampled at {temperature:g}: the ratio is "
            "comparable, yet it is not the importance weight of these samples (the mean ratio leaves 1). Use "
            "processed log-probs and divide the training logits by the temperature",
        )


def _truncation(what: str, kind: str | None) -> Found:
    if kind is None:
        yield (
            "logprobs-mode-undeclared",
            f"{what} without logprobs_mode: whether the inference log-probs are renormalised over the kept tokens is "
            "unknown; declare logprobs_mode='raw' or 'processed'",
        )
    elif kind == "processed":
        yield (
            "truncated-support",
            f"{what} with processed log-probs: they are renormalised over the kept tokens, the training side is "
            "normalised over the whole vocabulary, so every inference log-prob is too high by the mass cut off. "
            "Sample with the full support, or restrict the training softmax to the same tokens",
        )
    else:
        yield (
            "truncated-sampling",
            f"{what} with {kind} log-probs: both sides are comparable, but the tokens come from the truncated policy, "
            "so divergences are estimated over the kept tokens only and their unlikely tail is never seen. Sample "
            "with the full support where the tail matters",
        )


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
