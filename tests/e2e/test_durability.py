"""kill -9 of the real service at 50 random moments during concurrent ingest: what was acknowledged is there, once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.storage import schema
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments

KILLS = 50
RANKS = 4
SEED = 20260
PATIENCE_S = 120.0

# Imports once and forks a service for every line it reads, so that 50 starts take seconds. Each is the whole
# `python -m tailwatch_service serve` in a process of its own.
_NURSERY = """
import os, signal, sys
import tailwatch_service.app, tailwatch_service.server
from tailwatch_collectors.summary import warm_up
from tailwatch_service.cli import main
warm_up()  # fifty services load the compiled kernel once
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(2, 1)
        os._exit(main(["serve", *sys.argv[1:]]))
    print(child, flush=True)
"""


class Service:
    """Starts and kills services, one at a time, all on one port and one data directory."""

    def __init__(self, data_dir: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.pid: int | None = None
        settings = {
            "KEEP_TOKENS": "all",
            "LIMIT_REQUESTS_PER_MINUTE": "0",
            "GRACE_FLOOR_S": "0.5",
            "LOG_LEVEL": "error",
        }
        environ = {**os.environ, "TAILWATCH_SWEEP_INTERVAL_S": "0.2"}
        environ |= {f"TAILWATCH_{name}": value for name, value in settings.items()}
        command = [sys.executable, "-c", _NURSERY, "--port", str(port), "--data-dir", str(data_dir)]
        self._nursery = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=data_dir
        )

    def start(self) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write("start\n")
        self._nursery.stdin.flush()
        self.pid = int(self._nursery.stdout.readline())

    def kill(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < deadline, "the service outlived kill -9"
            time.sleep(0.002)
        self.pid = None

    def close(self) -> None:
        if self.pid is not None:
            self.kill()
        self._nursery.communicate(timeout=PATIENCE_S)


@dataclass
class Acknowledged:
    """What the service said is stored, by batch id."""

    digests: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: dict[str, Any], batch: Batch) -> None:
        batch_id = answer["batch_id"]
        with self._lock:
            assert batch_id not in self.digests
            self.digests[batch_id] = wire.content_digest(batch)
            self.keys[batch_id] = (batch.meta.step, batch.meta.rank)
            self.statuses.append(answer["status"])
        self.arrived.set()


def _batch(step: int, rank: int) -> Batch:
    generator = np.random.default_rng([SEED, step, rank])
    infer = -generator.exponential(1.0, 20)
    meta = BatchMeta(step=step, rank=rank, world_size=RANKS, session="launch")
    train = np.minimum(infer + generator.normal(0, 0.02, 20), 0.0)
    return Batch.from_arrays(meta, infer_logprobs=infer, train_logprobs=train, cu_seqlens=[0, 8, 20])


def _post(client: httpx.Client, run_id: str, batch: Batch) -> dict[str, Any] | None:
    """The answer; None where the service died meanwhile."""
    body, headers = wire.encode(batch), {"Content-Type": wire.CONTENT_TYPE}
    try:
        response = client.post(f"/api/v1/runs/{run_id}/batches", content=body, headers=headers)
    except httpx.TransportError:
        return None
    if response.status_code == 503:
        return None
    assert response.status_code in {200, 201}, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _send(url: str, run_id: str, rank: int, acknowledged: Acknowledged, stop: threading.Event) -> None:
    """One rank: step after step, each until it is acknowledged."""
    step = 0
    while not stop.is_set():
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            while not stop.is_set():
                batch = _batch(step, rank)
                answer = _post(client, run_id, batch)
                if answer is None:
                    time.sleep(0.005)
                    break
                acknowledged.add(answer, batch)
                step += 1


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


def _register(url: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            body = {"project": "p", "name": "r", "session": "launch"}
            run_id: str = httpx.post(f"{url}/api/v1/runs", json=body).raise_for_status().json()["run_id"]
            return run_id
        assert time.monotonic() < deadline, "the service did not start"
        time.sleep(0.02)


@pytest.mark.slow
def test_every_acknowledged_batch_survives_fifty_kills_and_none_is_there_twice(
    service: Service, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    service.start()
    run_id = _register(service.url)
    acknowledged, stop = Acknowledged(), threading.Event()
    failures: list[BaseException] = []

    def rank_of(rank: int) -> None:
        try:
            _send(service.url, run_id, rank, acknowledged, stop)
        except BaseException as error:
            failures.append(error)
            raise

    senders = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(RANKS)]
    for sender in senders:
        sender.start()
    try:
        for kill in range(KILLS):
            if kill % 5 != 4:  # every fifth may hit the start itself
                acknowledged.arrived.clear()
                assert acknowledged.arrived.wait(PATIENCE_S)
            time.sleep(chance.uniform(0.0, 0.2))
            service.kill()
            assert not failures
            service.start()
        acknowledged.arrived.clear()
        assert acknowledged.arrived.wait(PATIENCE_S)
    finally:
        stop.set()
        for sender in senders:
            sender.join(PATIENCE_S)
    assert not failures
    assert len(acknowledged.digests) > KILLS
    _resend(service.url, run_id, acknowledged, chance)
    db = Database.open(None, data_dir=tmp_path)
    _wait_until_merged(db)
    service.kill()
    _check_batches(db, Segments(tmp_path / "segments"), acknowledged)
    _check_steps(db)
    db.close()


def _resend(url: str, run_id: str, acknowledged: Acknowledged, chance: random.Random) -> None:
    """What was acknowledged is a duplicate, under the same id."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        for batch_id in chance.sample(sorted(acknowledged.digests), 20):
            answer = _post(client, run_id, _batch(*acknowledged.keys[batch_id]))
            assert answer is not None
            assert (answer["status"], answer["batch_id"]) == ("duplicate", batch_id)


def _wait_until_merged(db: Database) -> None:
    query = sa.select(sa.func.count()).where(schema.steps.c.pending.is_(sa.true()))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with db.read() as connection:
            if connection.execute(query).scalar() == 0:
                return
        assert time.monotonic() < deadline, "steps stayed open"
        time.sleep(0.1)


def _check_batches(db: Database, segments: Segments, acknowledged: Acknowledged) -> None:
    table = schema.batches
    with db.read() as connection:
        rows = connection.execute(sa.select(table)).all()
    stored = {row.batch_id: row for row in rows}
    assert len({(row.series_id, row.step, row.rank, row.part) for row in rows}) == len(rows)
    assert set(acknowledged.digests) <= set(stored)
    # A batch that was stored without an answer may be there too: at most the one each rank had under way.
    assert len(stored) <= len(acknowledged.digests) + RANKS
    for batch_id, digest in acknowledged.digests.items():
        row = stored[batch_id]
        assert (row.step, row.rank) == acknowledged.keys[batch_id]
        assert row.digest == digest
    for row in rows:
        assert wire.content_digest(wire.decode(segments.read(row.segment)).batch) == row.digest


def _check_steps(db: Database) -> None:
    """Each step's summary is the merge of its batches: none left out, none in it twice."""
    steps, blobs = schema.steps, schema.step_summaries
    same = sa.and_(blobs.c.series_id == steps.c.series_id, blobs.c.step == steps.c.step)
    with db.read() as connection:
        merged = connection.execute(sa.select(steps.c.step, steps.c.tokens, blobs.c.summary).join(blobs, same)).all()
        ranks = connection.execute(sa.select(schema.batches.c.step, schema.batches.c.rank)).all()
        seqs = connection.execute(sa.select(schema.events.c.seq).order_by(schema.events.c.seq)).scalars().all()
    by_step: dict[int, list[int]] = {}
    for step, rank in sorted(tuple(row) for row in ranks):
        by_step.setdefault(step, []).append(rank)
    assert {row.step for row in merged} == set(by_step)
    for row in merged:
        whole = summaries.merge([summaries.summarise(_batch(row.step, rank)) for rank in by_step[row.step]])
        assert row.summary == summaries.to_bytes(whole)
        assert row.tokens == 20 * len(by_step[row.step])
    assert seqs == list(range(1, len(seqs) + 1))
