"""What is generated and committed is what its source generates; what must be equal in several places is."""

from __future__ import annotations

import re
from pathlib import Path

from tailwatch_service.app import API, create_app
from tailwatch_service.settings import Settings
from tailwatch_service.statistics.page import metrics_page
from tailwatch_service.statistics.registry import METRICS

ROOT = Path(__file__).parent.parent.parent


def test_metrics_page_is_current() -> None:
    assert ROOT.joinpath("docs", "metrics.md").read_text(encoding="utf-8") == metrics_page(), "run `make generated`"


def test_metrics_page_holds_every_metric_once() -> None:
    headings = re.findall(r"^### `(\w+)`$", metrics_page(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(METRICS)


def test_the_four_distributions_have_one_version() -> None:
    versions = {
        room: re.search(r'^version = "(.+)"$', (ROOT / room / "pyproject.toml").read_text(), flags=re.MULTILINE)
        for room in ("collectors", "service", "dashboards", "alp")
    }
    assert len({match and match.group(1) for match in versions.values()}) == 1


def test_every_make_target_is_described() -> None:
    makefile = ROOT.joinpath("Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    described = re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE)
    assert sorted(phony.group(1).split()) == sorted(described)


def test_the_api_page_names_every_call() -> None:
    page = ROOT.joinpath("docs", "api.md").read_text(encoding="utf-8")
    paths = [path.removeprefix(API) for path in create_app(Settings()).openapi()["paths"]]
    assert len(paths) > 20
    # Calls below a step are listed after the first of their row, by their last word.
    missing = [path for path in paths if path not in page and f"/{path.rpartition('/')[2]}`" not in page]
    assert missing == []
