"""The what-if endpoint: all corrections, one with bounds, and what it refuses."""

from __future__ import annotations

import pytest

from tailwatch_service.statistics.corrections import CORRECTIONS
from tests.service.support import API, Start, problem

pytestmark = pytest.mark.asyncio


async def test_all_corrections_and_one_with_bounds(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=0)
        await live.closed(run, 0)
        address = f"{API}/runs/{run}/steps/0/what-if"
        every = (await live.client.get(address)).json()
        assert [one["correction"]["name"] for one in every["corrections"]] == list(CORRECTIONS)
        assert all(one["outcome"]["ess_before"] > 0 for one in every["corrections"])
        found = (await live.client.get(address, params={"correction": "tis_token", "upper": 1.05})).json()
        (one,) = found["corrections"]
        step = (await live.client.get(f"{API}/runs/{run}/steps/0")).json()
        assert one["outcome"]["share"] == step["metrics"]["above_1_05"]
        assert one["outcome"]["share_error"] == 0
        assert one["outcome"]["ess_before"] == step["metrics"]["ess_token"]


async def test_what_makes_no_sense_is_refused(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        address = f"{API}/runs/{run}/steps/latest/what-if"
        problem(await live.client.get(address), 404, "no closed step")
        await live.send(run, step=0)
        await live.closed(run, 0)
        for query, word in (
            ("correction=nothing", "icepop"),
            ("correction=tis_token&correction=mis_geometric", "which token is in which sequence"),
            ("correction=tis_token%2Bmis_geometric", "which token is in which sequence"),
            ("correction=icepop&lower=3", "outside"),
            ("correction=icepop&lower=NaN", "lower"),
            ("upper=3", "name the correction"),
        ):
            problem(await live.client.get(f"{address}?{query}"), 422, word)
