"""What is generated and committed is what its source generates; what must be equal in several places is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from tailwatch_service.app import API, create_app
from tailwatch_service.settings import Settings
from tailwatch_service.statistics.page import metrics_page
from tailwatch_service.statistics.page_text import FAMILIES, GROUPS
from tailwatch_service.statistics.registry import METRICS

ROOT = Path(__file__).parent.parent.parent


def script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metrics_page_is_current() -> None:
    made = metrics_page(script("metrics_page").seen())
    assert ROOT.joinpath("docs", "metrics.md").read_text(encoding="utf-8") == made, "run `make generated`"


def test_metrics_page_holds_every_metric_once_and_every_link_leads_somewhere() -> None:
    page = metrics_page({})
    found = re.findall(r"^(?:### `|\| <a id=\"(?=\w))(\w+)", page, flags=re.MULTILINE)
    assert sorted(found) == sorted(METRICS)
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-").replace("`", "") for heading in headings} | set(found)
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors
    assert all(ROOT.joinpath("docs", name).exists() for name in re.findall(r"\]\((\w+\.md)\)", page))


def test_every_family_and_group_of_the_page_has_metrics() -> None:
    assert set(FAMILIES) == {metric.family for metric in METRICS.values()}
    for group in GROUPS:
        assert sum(name.startswith(group.prefix) for name in METRICS) > 5


def test_ranges_are_shown_where_a_direction_harms() -> None:
    page = metrics_page({"kl_k3": (0.00428, 0.00864), "tokens": (1.0, 2.0), "invalid_share": (0.0, 0.0)})
    assert "- Seen: 0.0043 to 0.0086\n" in page
    assert "- Seen: 0\n" in page
    assert page.count("- Seen: ") == 2


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
