"""The Grafana Foundation SDK, an extra that needs Python 3.11.

Imported by name, and typed as Any: the rest of the package has to load and type-check on Python 3.10 and without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeAlias

Panel: TypeAlias = Any
"""A panel's builder."""

Query: TypeAlias = Any
"""A query's builder."""

Dashboard: TypeAlias = Any
"""A dashboard's builder."""

Builder: TypeAlias = Any
"""Any other builder."""


def _load(name: str) -> Any:
    try:
        return import_module(f"grafana_foundation_sdk.{name}")
    except ModuleNotFoundError as error:
        reason = "Grafana dashboards need the Foundation SDK: pip install 'tailwatch-dashboards[grafana]' (3.11+)"
        raise ModuleNotFoundError(reason, name=error.name) from error


common_builders = _load("builders.common")
builders = _load("builders.dashboard")
prometheus = _load("builders.prometheus")
stat = _load("builders.stat")
table = _load("builders.table")
timeseries = _load("builders.timeseries")
common = _load("models.common")
models = _load("models.dashboard")
prometheus_models = _load("models.prometheus")
