from __future__ import annotations

from typing import Any

import pytest

from tailwatch_service.settings import Limits
from tests.service.support import API, Start, problem

pytestmark = pytest.mark.asyncio


async def test_scalars_become_series(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        for step in range(3):
            answer = await live.client.post(
                f"{API}/runs/{run}/scalars", json={"step": step, "values": {"reward": step / 2, "gone": None}}
            )
            assert answer.json() == {"step": step, "attempt": 1, "stored": 2, "ignored": [], "directive": None}

        series = (await live.client.get(f"{API}/runs/{run}/series", params={"metrics": "reward,gone"})).json()

        assert series["steps"] == [0, 1, 2]
        assert series["metrics"] == {"reward": [0.0, 0.5, 1.0], "gone": [None, None, None]}


async def test_a_scalar_named_like_a_metric_is_left_out_and_named(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        answer = await live.client.post(
            f"{API}/runs/{run}/scalars", json={"step": 0, "values": {"kl_k3": 1.0, "reward": 1.0}}
        )

        assert answer.json()["ignored"] == ["kl_k3"]
        assert answer.json()["stored"] == 1


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"values": {"a": 1}}, ("step", "required")),
        ({"step": 1}, ("values", "required")),
        ({"step": 1.5, "values": {"a": 1}}, ("step", "1.5")),
        ({"step": -1, "values": {"a": 1}}, ("step", "-1")),
        ({"step": 1, "values": {"a": "x"}}, ("values.a", "'x'")),
        ({"step": 1, "values": {}}, ("values",)),
        ({"step": 1, "values": {"a": 1}, "attempt": 7}, ("attempt", "7")),
        ([1], ("JSON",)),
    ],
)
async def test_wrong_scalars_name_the_field(start: Start, body: Any, named: tuple[str, ...]) -> None:
    async with start() as live:
        run = await live.run()

        answer = await live.client.post(f"{API}/runs/{run}/scalars", json=body)

        if isinstance(body, list):
            problem(answer, 422)
        else:
            problem(answer, 422, *named)
        assert (await live.client.get(f"{API}/runs/{run}")).json()["scalars"] == []


async def test_the_number_of_series_is_limited(start: Start) -> None:
    async with start(limits=Limits(series_per_run=3)) as live:
        run = await live.run()
        path = f"{API}/runs/{run}/scalars"
        await live.client.post(path, json={"step": 0, "values": {"a": 1, "b": 2}})

        problem(await live.client.post(path, json={"step": 0, "values": {"c": 1, "d": 2}}), 422, "limit of 3")

        assert (await live.client.post(path, json={"step": 1, "values": {"a": 1, "c": 2}})).status_code == 200


async def test_an_event_is_logged_once_however_often_it_is_sent(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        path = f"{API}/runs/{run}/events"
        event = {"kind": "weight_sync", "step": 3, "payload": {"version": 2}}

        first = await live.client.post(path, json=event, headers={"Idempotency-Key": "e1"})
        again = await live.client.post(path, json=event, headers={"Idempotency-Key": "e1"})
        other = await live.client.post(path, json=event, headers={"Idempotency-Key": "e2"})

        assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
        assert again.json() == {**first.json(), "status": "duplicate"}
        assert other.json()["seq"] == first.json()["seq"] + 1
        log = (await live.client.get(path)).json()["events"]
        assert [one["kind"] for one in log].count("weight_sync") == 2
        assert log[-1]["payload"]["version"] == 2


async def test_finished_ends_a_run(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        await live.client.post(f"{API}/runs/{run}/events", json={"kind": "finished"})

        assert (await live.client.get(f"{API}/runs/{run}")).json()["state"] == "finished"


@pytest.mark.parametrize(
    ("event", "named"),
    [
        ({"kind": "step_closed"}, ("kind", "step_closed")),
        ({"kind": "has spaces"}, ("kind",)),
        ({}, ("kind", "required")),
        ({"kind": "x", "payload": {"big": "x" * 70_000}}, ("payload", "65536")),
        ({"kind": "x", "payload": [1]}, ("payload",)),
    ],
)
async def test_wrong_events_name_the_field(start: Start, event: Any, named: tuple[str, ...]) -> None:
    async with start() as live:
        run = await live.run()

        problem(await live.client.post(f"{API}/runs/{run}/events", json=event), 422, *named)


async def test_a_heartbeat_is_kept_with_what_the_collector_counts(start: Start) -> None:
    async with start() as live:
        run = await live.run(session="s")
        beat = {"session": "s", "attempt": 1, "rank": 3, "queued": 2, "dropped": 0, "sent": 5, "step": 9}

        answer = await live.client.post(f"{API}/runs/{run}/heartbeat", json=beat)

        assert answer.json() == {"state": "running", "attempt": 1, "directive": None}
        (kept,) = (await live.client.get(f"{API}/runs/{run}")).json()["heartbeats"]
        assert kept | {"rank": 3, "queued": 2, "step": 9} == kept
        problem(await live.client.post(f"{API}/runs/{run}/heartbeat", json={"rank": 10**12}), 422, "rank")


@pytest.mark.parametrize("path", ["scalars", "events", "heartbeat"])
async def test_small_records_are_json_within_a_limit(start: Start, path: str) -> None:
    async with start() as live:
        run = await live.run()
        url = f"{API}/runs/{run}/{path}"

        problem(await live.client.post(url, content=b"a=1", headers={"Content-Type": "text/plain"}), 415, "json")
        problem(await live.client.post(url, content=b"{", headers={"Content-Type": "application/json"}), 400)
        big = b'{"kind": "' + b"x" * 2**21 + b'"}'
        problem(await live.client.post(url, content=big, headers={"Content-Type": "application/json"}), 413, "2097152")
        problem(await live.client.post(f"{API}/runs/nowhere/{path}", json={"kind": "x"}), 404, "nowhere")
