from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa

from tailwatch_collectors import wire
from tailwatch_service.api.live import _start
from tailwatch_service.settings import Limits
from tailwatch_service.storage import events, schema
from tests.service.served import Served, serve
from tests.service.support import API, ARROW, make_batch


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path / "data") as running:
        yield running


def make_run(served: Served) -> str:
    answer = httpx.post(f"{served.url}{API}/runs", json={"project": "p", "name": "r"})
    return str(answer.json()["run_id"])


def send(served: Served, run: str, step: int) -> None:
    body = wire.encode(make_batch(step=step))
    assert httpx.post(f"{served.url}{API}/runs/{run}/batches", content=body, headers=ARROW).status_code == 201


def messages(lines: Iterator[str], *, count: int) -> list[dict[str, Any]]:
    """The next messages of a stream: `id`, `event`, `data`; comments are left out."""
    found: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    for line in lines:
        if line == "":
            if "data" in fields:
                found.append(fields)
            fields = {}
            if len(found) == count:
                return found
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = orjson.loads(value) if name == "data" else value
    return found


def stream(served: Served, run: str, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.stream("GET", f"{served.url}{API}/runs/{run}/live", headers=named, timeout=20.0)


def test_a_step_that_closes_is_told_within_the_second(served: Served) -> None:
    run = make_run(served)
    with stream(served, run) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        lines = answer.iter_lines()
        send(served, run, 5)
        sent_at = time.time()

        (message,) = messages(lines, count=1)

        assert time.time() - sent_at < 5.0
        data = message["data"]
        assert data | {"kind": "step_closed", "step": 5, "run_id": run, "phase": "rollout"} == data
        assert message["id"] == str(data["seq"])


def test_a_stream_resumes_without_a_gap(served: Served) -> None:
    run = make_run(served)
    for step in range(4):
        send(served, run, step)
    wanted = 6  # run_created, attempt_started and four steps
    deadline = time.monotonic() + 60.0
    while events.bounds(served.services.db, run)[1] < wanted and time.monotonic() < deadline:
        time.sleep(0.02)

    with stream(served, run, Last_Event_ID="3") as answer:
        resumed = messages(answer.iter_lines(), count=3)
    with httpx.stream("GET", f"{served.url}{API}/runs/{run}/live?after=4", timeout=20.0) as answer:
        after = messages(answer.iter_lines(), count=2)

    assert [message["id"] for message in resumed] == ["4", "5", "6"]
    assert [message["id"] for message in after] == ["5", "6"]


@pytest.mark.parametrize("last", ["999", "nonsense", "1"])
def test_an_id_that_is_not_in_the_log_resets(served: Served, last: str) -> None:
    run = make_run(served)
    for _ in range(3):
        events.append(served.services.db, run, kind="checkpoint", now=1.0)
    with served.services.db.write() as connection:
        old = sa.and_(schema.events.c.run_id == run, schema.events.c.seq < 4)
        connection.execute(sa.delete(schema.events).where(old))

    with stream(served, run, Last_Event_ID=last) as answer:
        (message,) = messages(answer.iter_lines(), count=1)

    assert message["event"] == "reset"
    assert message["id"] == "5"
    assert message["data"] == {"run_id": run, "seq": 5}


def test_what_another_replica_writes_is_found(served: Served) -> None:
    run = make_run(served)
    with stream(served, run) as answer:
        lines = answer.iter_lines()
        next(lines)
        events.append(served.services.db, run, kind="checkpoint", now=1.0, step=8)  # rings no bell here

        (message,) = messages(lines, count=1)

    assert message["data"]["kind"] == "checkpoint"


def test_a_quiet_stream_beats(tmp_path: Path) -> None:
    with serve(tmp_path / "data", live_heartbeat_s=0.2) as served:
        run = make_run(served)
        with stream(served, run) as answer:
            comments = (line for line in answer.iter_lines() if line.startswith(": ping"))

            assert next(comments)


def test_streams_end_when_the_service_stops(tmp_path: Path) -> None:
    ended = threading.Event()
    with serve(tmp_path / "data") as served:
        run = make_run(served)

        def follow() -> None:
            with stream(served, run) as answer:
                opened.set()
                for _ in answer.iter_lines():
                    pass
            ended.set()

        opened = threading.Event()
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        assert opened.wait(10.0)
        started = time.monotonic()

        served.stop()

        assert ended.wait(5.0)
        assert time.monotonic() - started < 8.0  # far below the grace that a request in progress has
        follower.join(5.0)


def test_streams_are_limited(tmp_path: Path) -> None:
    with serve(tmp_path / "data", limits=Limits(live_streams=1)) as served:
        run = make_run(served)
        with stream(served, run) as first:
            lines = first.iter_lines()
            next(lines)
            second = httpx.get(f"{served.url}{API}/runs/{run}/live")

            assert second.status_code == 429
            assert "1 live streams" in second.json()["detail"]
            assert second.headers["retry-after"] == "10"


@pytest.mark.parametrize(
    ("last", "after", "expected"),
    [
        (None, None, (9, True)),
        ("7", None, (7, True)),
        ("7", 3, (7, True)),
        (None, 4, (4, True)),
        (None, 3, (9, False)),
        ("10", None, (9, False)),
        ("9", None, (9, True)),
        ("²", None, (9, False)),
    ],
)
def test_where_a_stream_begins(last: str | None, after: int | None, expected: tuple[int, bool]) -> None:
    assert _start(last, after, first=5, newest=9) == expected


def test_a_run_without_events_begins_at_zero() -> None:
    assert _start(None, 0, first=0, newest=0) == (0, True)
