"""The registry: names that other systems hold, complete rows, and one entry for each number that is computed."""

from __future__ import annotations

import re
from typing import get_args

from tailwatch_collectors.summary import Summary
from tailwatch_service.statistics.compute import FAMILIES, metrics
from tailwatch_service.statistics.registry import HEADLINE, METRICS, Family, Harm


def test_one_entry_for_each_number() -> None:
    computed = metrics(Summary.empty())
    assert set(computed.values) | set(computed.missing) == set(METRICS)
    names = [name for family in FAMILIES for name in family(Summary.empty())]
    assert len(names) == len(set(names))


def test_names_are_stable_and_fit_for_prometheus() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert not name.endswith(("_total", "_bucket", "_count", "_sum")) or name == "tokens_total"


def test_rows_are_complete() -> None:
    for name, metric in METRICS.items():
        for column in ("title", "unit", "formula", "description", "missing_when"):
            assert getattr(metric, column).strip(), f"{name} has no {column}"
        assert metric.family in get_args(Family)
        assert metric.harm is None or metric.harm in get_args(Harm)
        assert metric.description.endswith((".", ")")), name
        assert metric.formula.count("{") == metric.formula.count("}"), name
        assert all(tool and alias for tool, alias in metric.aliases.items()), name
    units = {metric.unit for metric in METRICS.values()}
    assert units == {
        "nats", "nats²", "nats/version", "1", "ratio", "share", "share/version", "tokens", "sequences", "versions"
    }  # fmt: skip


def test_directions_of_divergences_are_written_down() -> None:
    for name in ("kl_k1", "kl_k2", "kl_k3"):
        assert METRICS[name].kl_direction == "KL(infer || train)"
    for name in ("kl_reverse_k1", "kl_reverse_k3"):
        assert METRICS[name].kl_direction == "KL(train || infer)"
    assert METRICS["kl_unweighted_reverse_k3"].kl_direction is None


def test_headline_names_exist() -> None:
    assert set(HEADLINE) <= set(METRICS)


def test_families_of_the_registry_are_those_of_the_page() -> None:
    counts = {family: sum(m.family == family for m in METRICS.values()) for family in get_args(Family)}
    assert counts == {
        "kl": 10,
        "ratios": 49,
        "tails": 6,
        "ess": 6,
        "envelope": 2,
        "sequences": 7,
        "policies": 12,
        "sharpness": 5,
        "validity": 21,
        "staleness": 12,
    }
    assert len(METRICS) == sum(counts.values())
