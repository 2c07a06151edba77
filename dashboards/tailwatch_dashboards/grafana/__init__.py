"""Grafana dashboards, made from the metric registry: `fleet` for all runs, `run` for one.

Pure: metrics in, JSON out. The files under dashboards/grafana/ are written by scripts/generate_grafana.py, which knows
the registry. Needs the extra `tailwatch-dashboards[grafana]`; nothing that serves pages imports it.
"""

from __future__ import annotations

from tailwatch_dashboards.grafana.fleet import fleet
from tailwatch_dashboards.grafana.frame import to_json
from tailwatch_dashboards.grafana.metric import MetricInfo
from tailwatch_dashboards.grafana.run import run

__all__ = ["MetricInfo", "fleet", "run", "to_json"]
