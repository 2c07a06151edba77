from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tailwatch_service.settings import Limits
from tests.service.support import API, Start, problem

pytestmark = pytest.mark.asyncio


async def test_a_run_is_created_once_and_known_after(start: Start) -> None:
    async with start() as live:
        spec = {"project": "math", "name": "grpo-7b", "precision": "fp8", "temperature": 1, "tags": {"a": "b"}}

        first = await live.client.post(f"{API}/runs", json=spec)
        second = await live.client.post(f"{API}/runs", json=spec)

        assert (first.status_code, second.status_code) == (201, 200)
        run = first.json()
        assert first.headers["location"] == f"{API}/runs/{run['run_id']}"
        assert run | {**spec, "attempt": 1, "status": "created", "state": "running"} == run
        assert second.json()["run_id"] == run["run_id"]
        assert second.json()["status"] == "known"


async def test_eight_resuming_ranks_make_one_attempt(start: Start) -> None:
    async with start() as live:
        await live.run(session="launch-1")
        spec = {"project": "p", "name": "r", "session": "launch-2"}

        answers = await asyncio.gather(*(live.client.post(f"{API}/runs", json=spec) for _ in range(8)))

        assert {answer.json()["attempt"] for answer in answers} == {2}
        detail = (await live.client.get(f"{API}/runs/{answers[0].json()['run_id']}")).json()
        assert [attempt["session"] for attempt in detail["attempts"]] == ["launch-1", "launch-2"]
        resumed = await live.client.post(f"{API}/runs", json={"project": "p", "name": "r", "resume": True})
        assert resumed.json()["attempt"] == 3


async def test_what_is_not_listed_is_configuration(start: Start) -> None:
    async with start() as live:
        run = await live.run(learning_rate=1e-6, config={"seed": 3})

        assert (await live.client.get(f"{API}/runs/{run}")).json()["config"] == {"learning_rate": 1e-6, "seed": 3}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "r"}, ("project", "required")),
        ({"project": "p"}, ("name", "required")),
        ({"project": "", "name": "r"}, ("project",)),
        ({"project": "p", "name": "x" * 257}, ("name", "256")),
        ({"project": "p", "name": "r", "world_size": 0}, ("world_size", "0")),
        ({"project": "p", "name": "r", "world_size": "8"}, ("world_size", "'8'")),
        ({"project": "p", "name": "r", "top_p": 1.5}, ("top_p", "1.5")),
        ({"project": "p", "name": "r", "tags": {"a": 1}}, ("tags.a", "1")),
        ({"project": 3, "name": ["r"]}, ("project", "name")),
    ],
)
async def test_wrong_runs_name_every_field(start: Start, body: dict[str, Any], named: tuple[str, ...]) -> None:
    async with start() as live:
        problem(await live.client.post(f"{API}/runs", json=body), 422, *named)
        assert (await live.client.get(f"{API}/runs")).json() == {"runs": [], "next_cursor": None}


async def test_a_description_has_a_size(start: Start) -> None:
    async with start() as live:
        big = {"project": "p", "name": "r", "config": {"x": "y" * 300_000}}

        problem(await live.client.post(f"{API}/runs", json=big), 413, "262144")


async def test_runs_per_project_are_limited(start: Start) -> None:
    async with start(limits=Limits(runs_per_project=2)) as live:
        await live.run("a")
        await live.run("b")

        problem(await live.client.post(f"{API}/runs", json={"project": "p", "name": "c"}), 422, "2 runs, the limit")

        await live.run("a")
        await live.run("c", project="other")


async def test_the_list_goes_on_where_the_cursor_says(start: Start) -> None:
    async with start() as live:
        made = [await live.run(f"r{i}", project="a" if i % 2 else "b") for i in range(7)]
        found: list[str] = []
        cursor = None
        while True:
            params: dict[str, Any] = {"limit": 3} | ({"cursor": cursor} if cursor else {})
            page = (await live.client.get(f"{API}/runs", params=params)).json()
            found += [run["run_id"] for run in page["runs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert found == made[::-1]
        only = (await live.client.get(f"{API}/runs", params={"project": "a"})).json()["runs"]
        assert [run["run_id"] for run in only] == made[1::2][::-1]
        problem(await live.client.get(f"{API}/runs", params={"cursor": "?"}), 422, "cursor")
        problem(await live.client.get(f"{API}/runs", params={"limit": 0}), 422, "limit", "0")


async def test_a_run_is_renamed_archived_and_deleted(start: Start) -> None:
    async with start() as live:
        run = await live.run("old")
        await live.run("taken")
        url = f"{API}/runs/{run}"

        changed = await live.client.patch(url, json={"name": "new", "archived": True, "tags": {"k": "v"}})

        assert changed.json() | {"name": "new", "archived": True, "tags": {"k": "v"}} == changed.json()
        assert [one["name"] for one in (await live.client.get(f"{API}/runs")).json()["runs"]] == ["taken"]
        everything = (await live.client.get(f"{API}/runs", params={"archived": True})).json()["runs"]
        assert {one["name"] for one in everything} == {"taken", "new"}
        problem(await live.client.patch(url, json={"name": "taken"}), 409, "taken")
        problem(await live.client.patch(url, json={"project": "x"}), 422, "project")
        problem(await live.client.patch(url, json={"name": None}), 422, "name")
        await live.send(run)
        assert (await live.client.delete(url)).status_code == 204
        problem(await live.client.get(url), 404, run)
        problem(await live.client.delete(url), 404, run)


async def test_the_detail_says_what_there_is(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=0)
        await live.send(run, step=1, phase="update", update_index=1)
        await live.closed(run, 0)
        await live.client.post(f"{API}/runs/{run}/scalars", json={"step": 0, "values": {"reward": 1.0}})

        detail = (await live.client.get(f"{API}/runs/{run}")).json()

        assert {(one["phase"], one["update_index"]) for one in detail["series"]} == {("rollout", 0), ("update", 1)}
        assert detail["scalars"] == ["reward"]
        assert detail["steps"] == {"first": 0, "last": 0, "count": 1}


async def test_the_event_log_can_be_read_on_from_a_number(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        for i in range(5):
            await live.client.post(f"{API}/runs/{run}/events", json={"kind": "checkpoint", "step": i})
        url = f"{API}/runs/{run}/events"

        newest = (await live.client.get(url, params={"limit": 2})).json()["events"]
        onwards = (await live.client.get(url, params={"after": newest[0]["seq"] - 1})).json()["events"]

        assert onwards == newest
        assert [event["step"] for event in newest] == [3, 4]
