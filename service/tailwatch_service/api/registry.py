"""Route of the metric registry: what every number means."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Response

from tailwatch_service import answers
from tailwatch_service.api.deps import Reader
from tailwatch_service.statistics.aliases import TOOLS
from tailwatch_service.statistics.registry import HEADLINE, METRICS

router = APIRouter(tags=["registry"])


@router.get("/registry", summary="All metrics: unit, formula, direction, healthy range, names in other tools")
def get_registry(_principal: Reader) -> Response:
    """The one table of metrics, in its order; `aliases` are keys in the logs of the `tools`, at the version read."""
    tools = [{"id": tool.id, "name": tool.name, "version": tool.version} for tool in TOOLS.values()]
    metrics = [asdict(metric) for metric in METRICS.values()]
    return answers.json({"metrics": metrics, "headline": HEADLINE, "tools": tools})
