"""The rule pack is what the table of rules generates, every rule has a runbook, and promtool agrees with all of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tailwatch_service.alerts import prometheus
from tailwatch_service.detection.rules import RULES

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("amtool") is None,
    reason="needs Debian's prometheus and prometheus-alertmanager",
)


def generated() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generate_rules", ROOT / "scripts" / "generate_rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[Path, str] = module.generated()
    return made


def tool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_committed_is_what_is_generated() -> None:
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run scripts/generate_rules.py"


def test_every_rule_has_a_runbook_that_says_what_to_do() -> None:
    for rule in RULES.values():
        page = ROOT.joinpath("docs", "runbooks", f"{rule.runbook}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {rule.id}\n")
        for part in ("## Confirm", "## Likely causes, in order", "## What to do"):
            assert part in page, (rule.id, part)


def test_every_rule_is_in_the_pack_at_both_severities() -> None:
    text = prometheus.rule_file()
    for rule in RULES:
        assert text.count(f"- alert: {rule}\n") == 2


@needs_promtool
def test_promtool_accepts_the_rules_and_the_configuration(tmp_path: Path) -> None:
    rules = ROOT / "dashboards" / "prometheus" / "tailwatch.rules.yml"
    assert "SUCCESS" in tool("promtool", "check", "rules", str(rules), cwd=tmp_path)
    shutil.copy(rules, tmp_path)
    tmp_path.joinpath("key").write_text("k")
    config = prometheus.scrape_config().replace("/run/tailwatch/scrape/key", str(tmp_path / "key"))
    tmp_path.joinpath("prometheus.yml").write_text(config)
    assert "SUCCESS" in tool("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
    tool("amtool", "check-config", str(ROOT / "dashboards" / "alertmanager" / "alertmanager.yml"), cwd=tmp_path)


@needs_promtool
def test_promtool_unit_tests_of_the_rules(tmp_path: Path) -> None:
    tmp_path.joinpath("rules.yml").write_text(prometheus.rule_file())
    tests = HERE.joinpath("tailwatch_test.yml").read_text().replace("- RULES", "- rules.yml")
    tmp_path.joinpath("test.yml").write_text(tests)
    assert "SUCCESS" in tool("promtool", "test", "rules", "test.yml", cwd=tmp_path)
