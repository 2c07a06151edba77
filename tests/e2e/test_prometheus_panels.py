"""Every PromQL expression of every Grafana panel, asked of a real Prometheus that scrapes a real service.

Two runs are behind it: the replay of a recording, and one that sends every column there is. Grafana itself is not
here; its variables are put in by hand.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tailwatch_service.exposition import name_of
from tailwatch_service.statistics.registry import METRICS

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards" / "grafana" / "dashboards"
API = "/api/v1"
PATIENCE_S = 120.0
REPLAYED = "recorded"
COMPLETE = "complete"
PROJECT = "panels"
STEPS = 6


@pytest.fixture
def prometheus(service: str, tmp_path: Path) -> Iterator[str]:
    """URL of a Prometheus that scrapes the service every second."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed")
    target = service.removeprefix("http://")
    scrape = {"job_name": "tailwatch", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    config = tmp_path / "prometheus.json"  # JSON is YAML
    config.write_text(json.dumps({"scrape_configs": [scrape]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    storage = f"--storage.tsdb.path={tmp_path / 'tsdb'}"
    command = [binary, f"--config.file={config}", storage, f"--web.listen-address={address}", "--log.level=error"]
    process = subprocess.Popen(command)
    try:
        _wait(lambda: process.poll() is None and _ready(f"http://{address}"), "Prometheus is ready")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def _wait(done: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if done():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def _replay(service: str) -> None:
    recording = str(ROOT / "lab" / "recordings" / "healthy.parquet")
    command = ["replay", recording, "--url", service, "--project", PROJECT, "--run", REPLAYED]
    done = subprocess.run(
        [sys.executable, "-m", "tailwatch_service", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def _sequence(rng: np.random.Generator, length: int) -> dict[str, Any]:
    infer = -rng.exponential(1.0, length) * rng.choice([0.02, 1.0, 3.0], length)
    train = np.minimum(infer + rng.standard_t(3, length) * 0.05, 0.0)
    return {
        "infer_logprobs": infer.tolist(),
        "train_logprobs": train.tolist(),
        "mask_post": [bool(index % 50) for index in range(length)],
        "entropy": rng.uniform(0.5, 1.0, length).tolist(),
        "sum_p2_other": ((1 - np.exp(train)) ** 2 * rng.uniform(0.2, 0.9, length)).tolist(),
        "token_ids": list(range(length)),
        "train_token_ids": list(range(length)),
        "infer_entropy": rng.uniform(0.5, 1.0, length).tolist(),
        "reward": float(rng.uniform()),
        "infer_version": int(rng.integers(0, 4)),
    }


def _send_complete(service: str) -> None:
    """A run whose batches carry every optional column, a step every 0.7 s: rates need samples on both sides."""
    answer = httpx.post(f"{service}{API}/runs", json={"project": PROJECT, "name": COMPLETE, "world_size": 1})
    run_id = answer.json()["run_id"]
    rng = np.random.default_rng(5)
    lengths = [16, 32, 64, 128] * 12
    for step in range(STEPS):
        record = {"step": step, "world_size": 1, "final": True, "train_version": 3}
        body = {**record, "sequences": [_sequence(rng, length) for length in lengths]}
        stored = httpx.post(f"{service}{API}/runs/{run_id}/batches", json=body)
        assert stored.status_code == 201, stored.text
        refused = httpx.post(f"{service}{API}/runs/{run_id}/batches", json={**record, "sequences": []})
        assert refused.status_code == 409
        time.sleep(0.7)


def _last_step(service: str, name: str) -> dict[str, Any]:
    runs = httpx.get(f"{service}{API}/runs").json()["runs"]
    (run_id,) = [run["run_id"] for run in runs if run["name"] == name]
    series = httpx.get(f"{service}{API}/runs/{run_id}/series", params={"metrics": "kl_k3"}).json()
    step: dict[str, Any] = httpx.get(f"{service}{API}/runs/{run_id}/steps/{series['steps'][-1]}").json()
    return step


def _panels(name: str) -> list[tuple[str, str]]:
    """(title, expression) of every target of a dashboard."""
    document = json.loads(DASHBOARDS.joinpath(name).read_text(encoding="utf-8"))
    found = []
    for panel in document["panels"]:
        for one in (*panel.get("panels", ()), *([panel] if "targets" in panel else [])):
            found += [(one["title"], target["expr"]) for target in one["targets"]]
    return found


def _fill(expr: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def _ask(prometheus: str, expr: str) -> list[float]:
    """The values that a panel would draw: the last minute, finite ones only."""
    now = time.time()
    answer = httpx.get(
        f"{prometheus}/api/v1/query_range", params={"query": expr, "start": now - 60, "end": now, "step": 1}
    ).json()
    assert answer["status"] == "success", f"{expr}: {answer}"
    values = [float(value) for series in answer["data"]["result"] for _, value in series["values"]]
    return [value for value in values if math.isfinite(value)]


def _now(prometheus: str, expr: str) -> list[float]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expr}).json()
    assert answer["status"] == "success", f"{expr}: {answer}"
    return [float(series["value"][1]) for series in answer["data"]["result"]]


@pytest.mark.slow
def test_every_panel_gets_data(service: str, prometheus: str) -> None:
    _replay(service)
    _send_complete(service)
    last = {name: _last_step(service, name) for name in (REPLAYED, COMPLETE)}
    for name, step in last.items():
        expr = f'tailwatch_train_step{{project="{PROJECT}", run="{name}"}}'
        _wait(lambda expr=expr, step=step: _now(prometheus, expr) == [step["step"]], f"{name} is scraped to its end")

    asked = 0
    for dashboard, project in (("fleet.json", ".*"), ("run.json", PROJECT)):
        values = {"$__rate_interval": "20s", "$project": project, "$run": COMPLETE}
        for title, expr in _panels(dashboard):
            found = _ask(prometheus, _fill(expr, values))
            assert found, f"{dashboard}, {title}: no data from {expr}"
            asked += 1
    assert asked > len(METRICS)

    _what_was_not_sent_is_absent(prometheus, last[REPLAYED])
    _names_of_the_variables(prometheus)


def _what_was_not_sent_is_absent(prometheus: str, step: Mapping[str, Any]) -> None:
    """A recording has no entropies: their panels are empty, and the others show what the API says."""
    for metric in METRICS:
        series, quantile = name_of(metric)
        label = "" if quantile is None else f', quantile="{quantile}"'
        expr = f'max by (project, run) ({series}{{project="{PROJECT}", run="{REPLAYED}"{label}}})'
        value = step["metrics"][metric]
        assert _now(prometheus, expr) == ([] if value is None else [pytest.approx(value, rel=1e-12)]), metric
    assert step["metrics"]["entropy_gap"] is None


def _names_of_the_variables(prometheus: str) -> None:
    """What fills Grafana's drop-down lists."""
    match = f'tailwatch_run_up{{project="{PROJECT}"}}'
    answer = httpx.get(f"{prometheus}/api/v1/label/run/values", params={"match[]": match}).json()
    assert answer["data"] == [COMPLETE, REPLAYED]
