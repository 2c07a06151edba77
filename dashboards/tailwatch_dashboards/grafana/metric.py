"""What a panel needs to know about a metric, and what it says about it. Knows no Grafana."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

UNITS: Mapping[str, str] = {
    "nats": "suffix: nats",
    "nats²": "suffix: nats²",
    "nats/version": "suffix: nats/version",
    "share/version": "percentunit",
    "share": "percentunit",
    "ratio": "prefix:×",
    "versions": "suffix: versions",
    "tokens": "short",
    "sequences": "short",
    "1": "none",
}
"""Unit of the registry to Grafana's."""

_NUMBER = r"([0-9.]+(?:e-?[0-9]+)?)"
_BELOW = re.compile(rf"below {_NUMBER}")
_ABOVE = re.compile(rf"above {_NUMBER}")
_WITHIN = re.compile(rf"within {_NUMBER} of {_NUMBER}")
_BETWEEN = re.compile(rf"{_NUMBER} to {_NUMBER}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The healthy range of a metric, where one holds for every run."""

    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricInfo:
    """One metric as a dashboard sees it."""

    name: str
    """Canonical name."""
    title: str
    unit: str
    """A key of UNITS."""
    family: str
    formula: str
    """LaTeX."""
    description: str
    series: str
    """Name of the Prometheus gauge."""
    quantile: str | None = None
    """Value of its label `quantile`; None: the gauge has no such label."""
    kl_direction: str | None = None
    harm: str | None = None
    healthy: str | None = None
    """Healthy range in words."""
    missing_when: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tool to its name for the metric."""
    runbooks: tuple[str, ...] = ()
    """Rules that judge it, which are the names of their runbooks."""

    @property
    def grafana_unit(self) -> str:
        """Grafana's id of the unit.

        Raises:
            ValueError: the unit is not in UNITS.
        """
        if self.unit not in UNITS:
            raise ValueError(f"{self.name}: no Grafana unit for {self.unit!r}; add it to UNITS")
        return UNITS[self.unit]

    def bounds(self) -> Bounds | None:
        """The healthy range as numbers; None where it depends on the run's class or was not given.

        Only an unconditional first clause counts: "below 1e-3 for dense bf16" is no line for every run.
        """
        clause = re.split(r";|\(", self.healthy or "")[0].strip()
        if found := _BELOW.fullmatch(clause):
            return Bounds(upper=float(found[1]))
        if found := _ABOVE.fullmatch(clause):
            return Bounds(lower=float(found[1]))
        if found := _WITHIN.fullmatch(clause):
            around, centre = float(found[1]), float(found[2])
            return Bounds(lower=round(centre - around, 9), upper=round(centre + around, 9))
        if found := _BETWEEN.fullmatch(clause):
            return Bounds(lower=float(found[1]), upper=float(found[2]))
        return None


def explain(metric: MetricInfo) -> str:
    """The metric in Markdown: what it means, formula, direction, healthy range, when it is missing, other names,
    runbooks."""
    lines = [f"**{metric.title}** (`{metric.name}`): {metric.description}", f"`{metric.formula}`"]
    if metric.kl_direction:
        lines.append(f"Direction: {metric.kl_direction}.")
    if metric.harm:
        lines.append(f"Bad: {metric.harm}.")
    if metric.healthy:
        lines.append(f"Healthy: {metric.healthy}.")
    if metric.missing_when and metric.missing_when != "never":
        lines.append(f"Missing: {metric.missing_when}.")
    if metric.aliases:
        lines.append(
            "Elsewhere: " + "; ".join(f"{tool} `{name}`" for tool, name in sorted(metric.aliases.items())) + "."
        )
    if metric.runbooks:
        links = ", ".join(f"[{name}](${{tailwatch}}/runbooks/{name})" for name in metric.runbooks)
        lines.append(f"Runbooks: {links}.")
    return "  \n".join(lines)
