"""Write docs/metrics.md from the registry."""

from __future__ import annotations

from pathlib import Path

from tailwatch_service.statistics.page import metrics_page

Path(__file__).parent.parent.joinpath("docs", "metrics.md").write_text(metrics_page(), encoding="utf-8")
