"""Write the Grafana dashboards from the registry: `python scripts/generate_grafana.py [directory]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tailwatch_dashboards import grafana
from tailwatch_service.detection.rules import RULES
from tailwatch_service.exposition import name_of
from tailwatch_service.statistics.registry import METRICS, Metric

TARGET = Path(__file__).parent.parent / "dashboards" / "grafana" / "dashboards"


def info(metric: Metric) -> grafana.MetricInfo:
    """A row of the registry as a dashboard sees it."""
    series, quantile = name_of(metric.name)
    return grafana.MetricInfo(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        family=metric.family,
        formula=metric.formula,
        description=metric.description,
        series=series,
        quantile=quantile,
        kl_direction=metric.kl_direction,
        harm=metric.harm,
        healthy=metric.healthy,
        missing_when=metric.missing_when,
        aliases=metric.aliases,
        runbooks=tuple(name for name, rule in RULES.items() if metric.name in {check.metric for check in rule.checks}),
    )


def files() -> Mapping[str, str]:
    """File name to content of every dashboard."""
    metrics = {name: info(metric) for name, metric in METRICS.items()}
    return {
        "fleet.json": grafana.to_json(grafana.fleet(metrics)),
        "run.json": grafana.to_json(grafana.run(metrics)),
    }


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        target.joinpath(name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
