"""kill -9 of a tailer in the middle of a directory, again and again, against a real service: every sequence, once."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_service.storage import schema
from tailwatch_service.storage.segments import Segments
from tests.service.served import Served, serve

STEPS, RANKS, SEQUENCES, TOKENS = 24, 2, 40, 64
KILLS = 4
PATIENCE_S = 60.0

pytestmark = pytest.mark.slow


def record(step: int, rank: int, index: int) -> dict[str, Any]:
    """One line of a token export: two tokens of prompt, the rest response."""
    infer = [-(1 + (index + t) % 40) / 32 for t in range(TOKENS)]
    return {
        "schema_version": 1,
        "step": step,
        "rank": rank,
        "micro_step": index // 8,
        "micro_sequence_idx": index % 8,
        "export_sequence_idx": index,
        "env_name": "math",
        "token_ids": [1000 * index + t for t in range(TOKENS)],
        "position_ids": list(range(TOKENS)),
        "loss_mask": [t >= 2 for t in range(TOKENS)],
        "advantages": [0.5] * TOKENS,
        "inference_logprobs": infer,
        "trainer_logprobs": [value - 1 / 64 for value in infer],
        "entropy": [1.0] * TOKENS,
        "is_masked": [False] * TOKENS,
        "rl_weights": [None] * TOKENS,
        "ref_kl_weights": [None] * TOKENS,
    }


def export(root: Path, step: int) -> None:
    folder = root / f"token_exports/step_{step}"
    folder.mkdir(parents=True)
    for rank in range(RANKS):
        lines = [json.dumps(record(step, rank, index)) for index in range(SEQUENCES)]
        (folder / f"rank_{rank}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "STABLE").touch()


@contextlib.contextmanager
def tail(root: Path, url: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A tailer in a process of its own; killed with SIGKILL if it still runs at the end."""
    command = [sys.executable, "-m", "tailwatch_collectors", "tail", "--format", "prime-rl", str(root)]
    command += ["--url", url, "--project", "p", "--run", "r", *more]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def stored(served: Served) -> list[Batch]:
    """Every batch the service has acknowledged, as it keeps it."""
    with served.services.db.read() as connection:
        rows = connection.execute(sa.select(schema.batches.c.segment)).all()
    segments = Segments(served.services.settings.data_dir / "segments")
    return [wire.decode(segments.read(row.segment)).batch for row in rows]


def count(served: Served) -> int:
    with served.services.db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(schema.batches)).scalar_one())


def test_a_tailer_killed_at_any_moment_sends_every_sequence_once(tmp_path: Path) -> None:
    root = tmp_path / "run"
    killed_midway = 0
    with serve(tmp_path / "data", keep_tokens="all") as served:
        for kill in range(KILLS):
            for step in range(kill * STEPS // KILLS, (kill + 1) * STEPS // KILLS):
                export(root, step)
            before = count(served)
            with tail(root, served.url, "--follow") as process:
                deadline = time.monotonic() + PATIENCE_S
                # In the middle of the steps that are new to it, at a moment of no choosing.
                while count(served) < before + 2:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
            killed_midway += count(served) < len(list(root.glob("token_exports/step_*")))
        with tail(root, served.url) as last:
            out, err = last.communicate(timeout=PATIENCE_S)
        assert (last.returncode, err) == (0, "")
        assert killed_midway  # else the kills came too late to say anything

        found = collections.Counter((one.meta.step, name) for one in stored(served) for name in one.seq_id or ())
        expected = {(s, f"{rank}.{index}") for s in range(STEPS) for rank in range(RANKS) for index in range(SEQUENCES)}
        assert set(found) == expected
        assert set(found.values()) == {1}

        run = httpx.get(f"{served.url}/api/v1/runs").json()["runs"][0]
        step = httpx.get(f"{served.url}/api/v1/runs/{run['run_id']}/steps/{STEPS - 1}").json()
        assert (step["closed"], step["coverage"], step["phase"], step["attempt"]) == (True, 1.0, "update", 1)
        assert step["metrics"]["tokens"] == RANKS * SEQUENCES * (TOKENS - 2)
        assert step["metrics"]["kl_k1"] == pytest.approx(1 / 64)
    assert "refused" not in out


def test_a_resumed_run_is_a_second_attempt(tmp_path: Path) -> None:
    root = tmp_path / "run"
    for step in range(4):
        export(root, step)
    with serve(tmp_path / "data") as served:
        for resumed in (False, True):
            if resumed:
                # From the checkpoint of step 1: steps 2 and 3 anew, with other numbers, and one more.
                for step in (2, 3):
                    for path in (root / f"token_exports/step_{step}").glob("rank_*.jsonl"):
                        path.write_text(path.read_text().replace('"math"', '"code"'))
                    (root / f"token_exports/step_{step}/STABLE").touch()
                export(root, 4)
            with tail(root, served.url) as process:
                out, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, (out, err)
        assert out.endswith("3 steps, 3 batches, 240 sequences, 14880 tokens; 3 stored; 2 rewritten\n")

        run = httpx.get(f"{served.url}/api/v1/runs").json()["runs"][0]
        place = f"{served.url}/api/v1/runs/{run['run_id']}"
        attempts = {step: httpx.get(f"{place}/steps/{step}").json()["attempt"] for step in range(5)}
        assert attempts == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2}
        series = httpx.get(f"{place}/series", params={"metrics": "tokens"}).json()
        assert series["steps"] == [0, 1, 2, 3, 4]


def test_histories_land_beside_the_batches_and_twice_is_once(tmp_path: Path) -> None:
    root = tmp_path / "run"
    export(root, 0)
    history = tmp_path / "metrics.jsonl"
    history.write_text('{"step": 0, "data": {"critic/rewards/mean": 0.5, "kl_k3": 9.0}}\n{"step": 1, "reward": 0.75}\n')
    with serve(tmp_path / "data") as served:
        with tail(root, served.url) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, err) == (0, ""), out
        command = [sys.executable, "-m", "tailwatch_service", "import", "--format", "jsonl", str(history)]
        command += ["--url", served.url, "--project", "p", "--run", "r"]
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert (done.returncode, done.stdout) == (
                0,
                f"{history}: 2 numbers of 2 steps stored; 1 names not stored\n",
            )
            assert "'kl_k3' not stored: it is the name of a metric" in done.stderr

        run = httpx.get(f"{served.url}/api/v1/runs").json()["runs"][0]
        series = httpx.get(
            f"{served.url}/api/v1/runs/{run['run_id']}/series", params={"metrics": "critic/rewards/mean,reward,kl_k1"}
        ).json()
        assert run["attempt"] == 1
        assert series["metrics"]["critic/rewards/mean"][0] == 0.5
        assert series["metrics"]["kl_k1"][0] == pytest.approx(1 / 64)
