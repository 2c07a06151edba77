"""metrics(summary): every metric of the registry, each a finite value or a reason why it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tailwatch_collectors.summary import Summary
from tailwatch_service.statistics.envelope import envelope_width_low, envelope_widths
from tailwatch_service.statistics.ess import ess, ess_token
from tailwatch_service.statistics.ess_chance import ess_chance
from tailwatch_service.statistics.kl import kl
from tailwatch_service.statistics.ratios import log_ratio_quantile, ratios
from tailwatch_service.statistics.registry import HEADLINE
from tailwatch_service.statistics.sequences import sequences
from tailwatch_service.statistics.sharpness import sharpness
from tailwatch_service.statistics.staleness import staleness
from tailwatch_service.statistics.tails import tails
from tailwatch_service.statistics.validity import validity
from tailwatch_service.statistics.values import Value

FAMILIES: tuple[Callable[[Summary], dict[str, Value]], ...] = (
    kl,
    ratios,
    tails,
    ess,
    ess_chance,
    envelope_widths,
    sequences,
    sharpness,
    validity,
    staleness,
)


@dataclass(frozen=True, slots=True)
class Computed:
    """Metrics of one summary; every canonical name is in exactly one of the two."""

    values: dict[str, float]
    """Finite values by canonical name."""
    missing: dict[str, str]
    """Why each of the others does not exist."""


def metrics(summary: Summary) -> Computed:
    """All metrics of a summary."""
    return _split([family(summary) for family in FAMILIES])


def headline(summary: Summary) -> dict[str, float]:
    """The headline metrics that exist, for the answer to a batch: what `metrics` says, without the rest of it."""
    if summary.tokens == 0:
        return {}
    found: dict[str, Value] = {
        "kl_k3": kl(summary)["kl_k3"],
        "log_ratio_q001": log_ratio_quantile(summary, "001"),
        "log_ratio_q999": log_ratio_quantile(summary, "999"),
        "ess_token": ess_token(summary),
        "envelope_width_low": envelope_width_low(summary),
    }
    return {name: value for name in HEADLINE if not isinstance(value := found[name], str)}


def _split(found: list[dict[str, Value]]) -> Computed:
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    for family in found:
        for name, value in family.items():
            if isinstance(value, str):
                missing[name] = value
            else:
                values[name] = float(value)
    return Computed(values, missing)
