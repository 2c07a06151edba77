"""Wording: what an alert says, in one line and in a paragraph."""

from __future__ import annotations

from tailwatch_service.detection.rules import SILENCE, Rule
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.types import Finding


def summary(rule: Rule, finding: Finding, *, run: str, step: int | None) -> str:
    """One line: what, where, how much."""
    where = run if step is None else f"{run}, step {step}"
    part = f" ({finding.slice})" if finding.slice else ""
    return f"{rule.title}{part} in {where}: {_measured(finding)}"


def description(rule: Rule, finding: Finding) -> str:
    """A paragraph: what the rule looked at and what it held it against."""
    if finding.metric == SILENCE:
        return (
            f"No step has closed for {_number(finding.value)} s; the line is {_number(finding.threshold)} s "
            f"({finding.basis}). The median step takes {_number(finding.baseline)} s."
        )
    metric = METRICS.get(finding.metric)
    title = metric.title if metric is not None else finding.metric
    parts = [f"{title} ({finding.metric}) is {_number(finding.value)}, the line is {_number(finding.threshold)}"]
    if finding.baseline is not None:
        parts.append(f"usual is {_number(finding.baseline)}")
    if finding.score is not None:
        parts.append(f"score {finding.score:.1f}")
    said = f"{', '.join(parts)}; compared with {finding.basis}. "
    return said + f"Broken in {finding.hits} of the last {finding.window} judged steps ({rule.hits} fire)."


def _measured(finding: Finding) -> str:
    if finding.metric == SILENCE:
        return f"silent for {_number(finding.value)} s"
    return f"{finding.metric} {_number(finding.value)}, line {_number(finding.threshold)}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
