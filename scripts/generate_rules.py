"""Write dashboards/prometheus, dashboards/alertmanager and the service's copy of docs/runbooks."""

from __future__ import annotations

from pathlib import Path

from tailwatch_service.alerts.prometheus import alertmanager_config, rule_file, scrape_config
from tailwatch_service.detection.rules import RULES

ROOT = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    made = {
        ROOT / "dashboards" / "prometheus" / "tailwatch.rules.yml": rule_file(),
        ROOT / "dashboards" / "prometheus" / "prometheus.yml": scrape_config(),
        ROOT / "dashboards" / "alertmanager" / "alertmanager.yml": alertmanager_config(),
    }
    package = ROOT / "service" / "tailwatch_service" / "alerts" / "runbooks"
    for rule in RULES.values():
        page = ROOT / "docs" / "runbooks" / f"{rule.runbook}.md"
        made[package / page.name] = page.read_text(encoding="utf-8")
    return made


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
