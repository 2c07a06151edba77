from __future__ import annotations

import math

import numpy as np
import pytest
import sqlalchemy as sa

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.storage import schema
from tests.service.support import API, Start, make_batch, problem

pytestmark = pytest.mark.asyncio


async def test_a_step_accounts_for_every_metric(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=7, sequences=20, length=100)

        step = await live.closed(run, 7)

        assert set(step["metrics"]) == set(METRICS)
        for name, value in step["metrics"].items():
            assert (value is None) == (name in step["missing"])
            assert value is None or math.isfinite(value)
        assert step["missing"]["entropy_gap"]
        assert not set(step["intervals"]) & set(step["intervals_missing"])
        for name, value in step["metrics"].items():
            assert (value is not None) == (name in step["intervals"] or name in step["intervals_missing"]), name
        low, high = step["intervals"]["kl_k2"]
        assert low < step["metrics"]["kl_k2"] < high
        assert {"probability", "lag", "position", "rank"} <= set(step["slices"])
        # Its clamped log-probs are zeros that one side alone has, and its spread is beyond dense bf16.
        assert [found["rule"] for found in step["findings"]] == ["LogprobInvalid", "MismatchK3High"]
        latest = (await live.client.get(f"{API}/runs/{run}/steps/latest")).json()
        assert latest == step


async def test_an_open_step_says_so(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=0, rank=0, world_size=2)
        url = f"{API}/runs/{run}/steps/0"

        step = (await live.client.get(url)).json()

        assert step["closed"] is False
        assert step["coverage"] is None
        assert set(step["missing"].values()) == {"the step is still open"}
        problem(await live.client.get(f"{url}/envelope"), 404, "still open")
        problem(await live.client.get(f"{API}/runs/{run}/steps/latest"), 404, "no closed step")


async def test_the_parts_of_a_step(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        batch = make_batch(step=3, sequences=50, length=100)
        await live.send(run, batch)
        await live.closed(run, 3)
        url = f"{API}/runs/{run}/steps/3"

        envelope = (await live.client.get(f"{url}/envelope")).json()
        histogram = (await live.client.get(f"{url}/histogram")).json()
        tokens = (await live.client.get(f"{url}/tokens")).json()

        assert sum(part["tokens"] for part in envelope["bins"]) == batch.tokens
        assert any(part["p50"] is None for part in envelope["bins"] if part["tokens"] == 0)
        full = max(envelope["bins"], key=lambda part: part["tokens"])
        low, high = full["intervals"]["p50"]
        assert low <= full["p50"] <= high
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
        assert sum(histogram["counts"]) == batch.tokens
        assert histogram["survival"]["upper"]["fit"]["shape"] is not None
        d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N
        assert max(token["log_ratio"] for token in tokens["tokens"]) == pytest.approx(d.max(), rel=1e-6)
        assert abs(tokens["tokens"][0]["log_ratio"]) == pytest.approx(np.abs(d).max(), rel=1e-6)
        assert "context" not in tokens["tokens"][0]


async def test_worst_tokens_come_with_their_neighbours_where_tokens_are_kept(start: Start) -> None:
    batch = Batch.from_arrays(
        BatchMeta(step=0, world_size=1),
        infer_logprobs=[[-1.0, -1.0, -1.0], [-1.0, -9.0, -1.0, -1.0]],
        train_logprobs=[[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, -1.0]],
        token_ids=[[1, 2, 3], [4, 5, 6, 7]],
        seq_id=["a", "b"],
    )
    async with start(keep_tokens="all") as live:
        run = await live.run()
        await live.send(run, batch)
        await live.closed(run, 0)

        answer = await live.client.get(f"{API}/runs/{run}/steps/0/tokens", params={"context": 1})

        worst = answer.json()["tokens"][0]
        assert (worst["log_ratio"], worst["row"], worst["position"], worst["seq_id"]) == (8.0, 1, 1, "b")
        assert worst["token_id"] == 5
        assert worst["context"]["token_ids"] == [4, 5, 6]
        assert worst["context"]["position"] == 0
        assert worst["context"]["infer_logprobs"] == [-1.0, -9.0, -1.0]


async def test_each_curve_has_its_own_steps(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=1, seed=1)
        await live.send(run, step=1, phase="update", update_index=2, seed=2, length=30)
        await live.send(run, step=1, stream="eval", seed=3, length=20)
        await live.closed(run, 1)
        url = f"{API}/runs/{run}/steps/1"

        update = (await live.client.get(url, params={"phase": "update", "update_index": 2})).json()
        evaluation = (await live.client.get(url, params={"stream": "eval"})).json()

        assert (update["phase"], update["update_index"], update["tokens"]) == ("update", 2, 120)
        assert (evaluation["stream"], evaluation["tokens"]) == ("eval", 80)
        problem(await live.client.get(url, params={"phase": "probe"}), 404, "step 1")
        problem(await live.client.get(url, params={"attempt": 4}), 404, "step 1")


@pytest.mark.parametrize("step", ["-1", "1.5", "x", "9007199254740992", "1" * 40, "%31%00"])
async def test_what_is_no_step_number(start: Start, step: str) -> None:
    async with start() as live:
        run = await live.run()

        problem(await live.client.get(f"{API}/runs/{run}/steps/{step}"), 422, "step")


async def test_a_step_that_does_not_exist(start: Start) -> None:
    async with start() as live:
        run = await live.run()

        problem(await live.client.get(f"{API}/runs/{run}/steps/99"), 404, "99")
        problem(await live.client.get(f"{API}/runs/nowhere/steps/99"), 404, "nowhere")


async def test_the_registry_describes_every_metric(start: Start) -> None:
    async with start() as live:
        registry = (await live.client.get(f"{API}/registry")).json()

        assert [metric["name"] for metric in registry["metrics"]] == list(METRICS)
        k3 = next(metric for metric in registry["metrics"] if metric["name"] == "kl_k3")
        assert k3["unit"] == "nats"
        assert k3["kl_direction"]


async def test_a_step_of_an_older_format_keeps_its_metrics_and_says_so(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=2, length=60)
        before = await live.closed(run, 2)
        with live.services.db.write() as connection:
            table = schema.step_summaries
            data = connection.execute(sa.select(table.c.summary)).scalar_one()
            connection.execute(sa.update(table).values(summary=b"TWS\0" + bytes(data)[4:]))
        url = f"{API}/runs/{run}/steps/2"

        step = (await live.client.get(url)).json()

        assert step["metrics"] == before["metrics"]
        assert step["slices"] == step["intervals"] == {}
        assert "older format" in step["slices_missing"]
        assert "version 0 is not supported" in step["intervals_missing"]["kl_k3"]
        for part in ("envelope", "histogram", "tokens", "what-if"):
            problem(await live.client.get(f"{url}/{part}"), 404, "older format")
        page = await live.client.get(f"/runs/{run}")
        assert page.status_code == 200
        found = (await live.client.get(f"/runs/{run}/what-if", params={"correction": "icepop"})).json()
        assert "older format" in str(found)
        for part in ("lag", "charts"):
            assert (await live.client.get(f"/runs/{run}/view", params={"part": part})).status_code in {200, 422}
