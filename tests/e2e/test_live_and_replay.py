"""The first slice in one test: a real RL run streams into a real service, and its recording replays to equal bits."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database

STEPS = 4
PATIENCE_S = 60.0
ROOT = Path(__file__).parent.parent.parent


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _closed_steps(url: str, name: str) -> tuple[str, list[int]]:
    """Run id and closed steps, waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = [run for run in httpx.get(f"{url}/api/v1/runs").json()["runs"] if run["name"] == name]
        if found:
            run_id = found[0]["run_id"]
            steps = httpx.get(f"{url}/api/v1/runs/{run_id}/series", params={"metrics": "kl_k3"}).json()["steps"]
            if len(steps) == STEPS:
                return run_id, steps
        time.sleep(0.1)
    raise AssertionError(f"{name}: {STEPS} closed steps expected within {PATIENCE_S} s")


def _summaries(data_dir: Path, run_id: str) -> dict[int, bytes]:
    """Serialised summary of every closed step, by step."""
    db = Database.open(None, data_dir=data_dir)
    try:
        table, series = schema.step_summaries, schema.series
        query = sa.select(table.c.step, table.c.summary).join(series).where(series.c.run_id == run_id)
        with db.read() as connection:
            return {row.step: bytes(row.summary) for row in connection.execute(query)}
    finally:
        db.close()


@pytest.mark.slow
def test_a_live_run_is_watched_and_its_recording_replays_to_the_same_bits(service: str, tmp_path: Path) -> None:
    recording = str(tmp_path / "run.parquet")
    printed = _run(
        "lab.train", "--live", "--url", service, "--run", "live", "--steps", str(STEPS), "--record", recording
    )
    assert "kl_k3" in printed
    live, steps = _closed_steps(service, "live")
    assert steps == list(range(STEPS))
    _run("tailwatch_service", "replay", recording, "--url", service, "--run", "replayed")
    replayed, _ = _closed_steps(service, "replayed")

    of_live, of_replay = _summaries(tmp_path / "data", live), _summaries(tmp_path / "data", replayed)
    assert sorted(of_live) == list(range(STEPS))
    assert of_live == of_replay

    for run_id in (live, replayed):
        page = httpx.get(f"{service}/runs/{run_id}")
        assert page.status_code == 200
        assert "KL(infer" in page.text
    scalars = httpx.get(f"{service}/api/v1/runs/{live}/series", params={"metrics": "reward"}).json()
    assert len(scalars["metrics"]["reward"]) == STEPS
    events = httpx.get(f"{service}/api/v1/runs/{live}/events").json()["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {"run_created", "weight_sync", "step_closed", "finished"} <= {event["kind"] for event in events}
