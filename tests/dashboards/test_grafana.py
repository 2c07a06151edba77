"""The Grafana dashboards: what is committed, against the generator, the registry and the SDK's models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="the Grafana Foundation SDK needs Python 3.11")

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.models import dashboard as models

from scripts import generate_grafana
from tailwatch_dashboards import grafana
from tailwatch_dashboards.grafana import panels
from tailwatch_dashboards.grafana.metric import UNITS, Bounds, explain
from tailwatch_dashboards.grafana.run import ROWS, rows
from tailwatch_service.statistics.registry import METRICS

NAMES = ("fleet.json", "run.json")
INFOS: Mapping[str, grafana.MetricInfo] = {name: generate_grafana.info(metric) for name, metric in METRICS.items()}
VARIABLES = {
    "$__rate_interval": "1m",
    "$project": "math",
    "$run": "grpo",
}


def committed(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(generate_grafana.TARGET.joinpath(name).read_text(encoding="utf-8"))
    return document


def shown(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that is not the head of a row."""
    for panel in document["panels"]:
        yield from panel.get("panels", ())
        if panel["type"] != "row":
            yield panel


def expressions(document: dict[str, Any]) -> set[str]:
    found = {target["expr"] for panel in shown(document) for target in panel["targets"]}
    return found | {mark["expr"] for mark in document["annotations"]["list"]}


def test_what_is_committed_is_what_the_generator_makes() -> None:
    made = generate_grafana.files()

    assert sorted(made) == sorted(path.name for path in generate_grafana.TARGET.iterdir()) == sorted(NAMES)
    for name, text in made.items():
        kept = generate_grafana.TARGET.joinpath(name).read_text(encoding="utf-8")
        assert kept == text, f"{name} is old: run scripts/generate_grafana.py"
    assert generate_grafana.files() == made


@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_the_sdk_read_and_write_the_same(name: str) -> None:
    plugins.register_default_plugins()
    document = committed(name)

    model = models.Dashboard.from_json(document)

    assert panels.plain(model) == document
    assert document["uid"] == f"tailwatch-{name.removesuffix('.json')}"


@pytest.mark.parametrize("name", NAMES)
def test_a_field_the_sdk_does_not_know_is_noticed(name: str) -> None:
    plugins.register_default_plugins()
    document = committed(name)
    next(shown(document))["madeUp"] = 1

    assert panels.plain(models.Dashboard.from_json(document)) != document


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_its_place_and_explains_itself(name: str) -> None:
    document = committed(name)
    ids = [panel["id"] for panel in document["panels"]]
    taken: set[tuple[int, int]] = set()

    assert len(ids) == len(set(ids))
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= panels.WIDTH
        taken |= cells
    for panel in shown(document):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_those_that_everyone_tells_apart(name: str) -> None:
    text = json.dumps(committed(name))

    colours = set(re.findall(r"#[0-9A-Fa-f]{6}", text))
    assert colours <= {*panels.PALETTE, panels.BLUE, panels.ORANGE, panels.GREEN, panels.VERMILION}
    assert '"color": "red"' not in text
    assert "palette-classic" not in text


def test_the_run_dashboard_shows_every_metric_once() -> None:
    counted = [metric.name for _, charts in rows(INFOS) for _, members in charts for metric in members]

    assert sorted(counted) == sorted(METRICS)
    for metric in INFOS.values():
        assert any(f"({metric.series}{{" in expr for expr in expressions(committed("run.json"))), metric.name


def test_a_new_metric_gets_a_chart_of_its_own() -> None:
    new = replace(INFOS["kl_k3"], name="kl_new", series="tailwatch_kl_new", unit="ratio", title="New")

    text = grafana.to_json(grafana.run({**INFOS, "kl_new": new}))

    assert "tailwatch_kl_new{" in text
    assert "Further metrics (ratio)" in text


def test_a_chart_of_an_unknown_metric_is_refused() -> None:
    without = {name: info for name, info in INFOS.items() if name != "tail_weight"}

    with pytest.raises(ValueError, match=r"'Tail weight' names 'tail_weight'"):
        list(rows(without))


def test_a_chart_mixes_no_units() -> None:
    for _, charts in rows(INFOS):
        for group, members in charts:
            units = {metric.unit for metric in members}
            assert len(units) == 1 or units <= {"tokens", "sequences"}, group


def test_only_what_is_never_negative_has_a_logarithmic_axis() -> None:
    logs = {name for _, groups in ROWS.values() for group in groups if group.log for name in group.names}

    signed = ("kl_k1", "kl_reverse_k1", "log_ratio_mean", "log_ratio_q*", "align_lag", "lag_mean", "log_ppl_gap*")
    assert logs
    assert not logs & set(signed)


def test_an_unknown_unit_is_refused() -> None:
    odd = replace(INFOS["kl_k3"], unit="furlongs")

    with pytest.raises(ValueError, match="kl_k3: no Grafana unit for 'furlongs'"):
        _ = odd.grafana_unit
    assert {metric.unit for metric in METRICS.values()} <= set(UNITS)


@pytest.mark.parametrize(
    ("healthy", "bounds"),
    [
        ("below 0.5; unreliable above 0.7", Bounds(upper=0.5)),
        ("above 0.95", Bounds(lower=0.95)),
        ("within 0.02 of 1", Bounds(lower=0.98, upper=1.02)),
        ("1 to 2", Bounds(lower=1.0, upper=2.0)),
        ("below 0.04 (M2PO's constraint)", Bounds(upper=0.04)),
        ("below 1e-3 for dense bf16 at lag 0; below 1e-2 for fp8", None),
        ("about 1", None),
        ("0", None),
        (None, None),
    ],
)
def test_healthy_lines_come_from_the_registry_where_they_hold_for_every_run(
    healthy: str | None, bounds: Bounds | None
) -> None:
    assert replace(INFOS["kl_k3"], healthy=healthy).bounds() == bounds


def test_which_metrics_have_a_line() -> None:
    lines = {name: info.bounds() for name, info in INFOS.items() if info.bounds() is not None}

    assert lines["tail_khat_upper"] == lines["tail_khat_lower"] == Bounds(upper=0.5)
    assert lines["ess_token"] == Bounds(lower=0.95)
    assert lines["ratio_mean"] == Bounds(lower=0.98, upper=1.02)
    assert "kl_k3" not in lines, "its line depends on the class of the run"


def test_an_explanation_holds_formula_direction_and_healthy_range() -> None:
    text = explain(INFOS["kl_k3"])

    for part in (
        METRICS["kl_k3"].formula,
        "KL(infer || train)",
        "Bad: higher",
        "Healthy: below 1e-3",
        "mismatch_kl/all/mean",
    ):
        assert part in text


def test_an_explanation_leads_to_the_runbooks() -> None:
    assert "[KlSpike](${tailwatch}/runbooks/KlSpike)" in explain(INFOS["kl_k3"])
    assert "unbooks" not in explain(INFOS["infer_ppl"])


def test_quantiles_are_one_chart_with_one_query() -> None:
    (panel,) = [panel for panel in shown(committed("run.json")) if panel["title"] == "Quantiles of the log ratio"]

    (target,) = panel["targets"]
    looks = {rule["matcher"]["options"]: rule["properties"] for rule in panel["fieldConfig"]["overrides"]}
    assert "quantile" in target["expr"]
    assert sorted(looks) == sorted(f"Q{info.quantile}" for info in INFOS.values() if info.quantile is not None)
    assert looks["Q0.001"][0] == looks["Q0.999"][0]
    assert looks["Q0.001"] != looks["Q0.999"]
    assert {"id": "displayName", "value": "P0.1 of d"} in looks["Q0.001"]


def test_links_lead_to_the_run() -> None:
    (table,) = [panel for panel in shown(committed("fleet.json")) if panel["type"] == "table"]
    rules = {rule["matcher"]["options"]: rule["properties"] for rule in table["fieldConfig"]["overrides"]}
    links = next(one["value"] for one in rules["Run"] if one["id"] == "links")

    assert [link["title"] for link in links] == ["Open in Grafana", "Open in Tailwatch"]
    assert links[1]["url"].startswith("${tailwatch}/?q=${__data.fields.Project")
    for panel in shown(committed("run.json")):
        if panel["type"] == "timeseries" and "$run" in panel["targets"][0]["expr"]:
            (link,) = panel["fieldConfig"]["defaults"]["links"]
            assert "${__field.labels.run:percentencode}" in link["url"]


def test_variables_cascade() -> None:
    variables = {one["name"]: one for one in committed("run.json")["templating"]["list"]}

    assert list(variables) == ["datasource", "project", "run", "tailwatch"]
    assert variables["run"]["query"]["query"] == 'label_values(tailwatch_run_up{project="$project"}, run)'
    used = {name for text in map(json.dumps, map(committed, NAMES)) for name in re.findall(r"\$\{?([a-z]\w*)", text)}
    assert used <= set(variables)


@pytest.mark.parametrize("name", NAMES)
def test_promtool_reads_every_expression(name: str, tmp_path: Path) -> None:
    """As the expressions of a rule file: `promtool promql format` is newer than what distributions carry."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    rules = []
    for index, expr in enumerate(sorted(expressions(committed(name)))):
        for variable, value in VARIABLES.items():
            expr = expr.replace(variable, value)  # noqa: PLW2901  # a fold
        assert "$" not in expr
        rules.append({"record": f"panel:{index}", "expr": expr})
    file = tmp_path / "panels.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))

    checked = subprocess.run(
        [promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=30, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_groups_are_told_apart_by_their_titles() -> None:
    titles = [group.title for _, groups in ROWS.values() for group in groups]

    assert len(titles) == len(set(titles))
    assert all(group.names for _, groups in ROWS.values() for group in groups)
