from __future__ import annotations

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tailwatch_service.exposition import name_of
from tailwatch_service.statistics.registry import METRICS
from tests.service.support import API, Live, Start, make_batch


async def scrape(live: Live) -> dict[str, Metric]:
    text = (await live.client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {family.name: family for family in families}


@pytest.mark.asyncio
async def test_the_last_closed_step_of_a_run(start: Start) -> None:
    async with start() as live:
        run = await live.run("grpo", project="math")
        for step in (4, 5):
            await live.send(run, make_batch(step=step, seed=step, sequences=20, length=100))
        closed = await live.closed(run, 5)

        families = await scrape(live)

        labels = {"project": "math", "run": "grpo"}
        (k3,) = families["tailwatch_kl_k3"].samples
        assert (k3.labels, k3.value) == (labels, closed["metrics"]["kl_k3"])
        assert families["tailwatch_train_step"].samples[0].value == 5
        quantiles = {sample.labels["quantile"]: sample.value for sample in families["tailwatch_log_ratio"].samples}
        assert quantiles["0.001"] == closed["metrics"]["log_ratio_q001"]
        assert quantiles["0.5"] == closed["metrics"]["log_ratio_q50"]
        assert quantiles["0.999"] == closed["metrics"]["log_ratio_q999"]
        assert families["tailwatch_last_update_timestamp_seconds"].samples[0].value > 1e9
        assert families["tailwatch_alp_state"].samples[0].value == 0
        assert families["tailwatch_entropy_gap"].samples == []  # missing is absent, never 0
        for family in families.values():
            for sample in family.samples:
                assert not {"step", "token", "prompt", "layer", "run_id"} & set(sample.labels)


@pytest.mark.asyncio
async def test_what_the_service_counts_about_itself(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, seed=1)
        await live.send(run, seed=1)
        await live.send(run, seed=2)
        await live.client.post(f"{API}/runs/{run}/batches", content=b"x", headers={"Content-Type": "text/plain"})

        families = await scrape(live)

        batches = {
            s.labels["status"]: s.value for s in families["tailwatch_ingest_batches"].samples if "_total" in s.name
        }
        rejects = {
            s.labels["status"]: s.value for s in families["tailwatch_ingest_rejects"].samples if "_total" in s.name
        }
        assert batches == {"stored": 1, "duplicate": 1}
        assert rejects == {"409": 1, "415": 1}
        assert families["tailwatch_ingest_tokens"].samples[0].value == 200
        assert families["tailwatch_ingest_bytes"].samples[0].value > 1000
        seconds = {s.name: s.value for s in families["tailwatch_ingest_seconds"].samples if not s.labels}
        assert seconds["tailwatch_ingest_seconds_count"] == 2


@pytest.mark.asyncio
async def test_what_collectors_say_of_themselves(start: Start) -> None:
    async with start() as live:
        run, silent = await live.run("loud"), await live.run("silent")
        said = [
            {"rank": 0, "queued": 2, "spooled": 30, "dropped": 1, "overhead": 0.002},
            {"rank": 1, "queued": 1, "spooled": 12, "dropped": 0, "overhead": 0.004, "rejected": "none"},
        ]
        for beat in (*said, said[0]):
            answer = await live.client.post(f"{API}/runs/{run}/heartbeat", json=beat)
            assert answer.status_code in {200, 201, 202}, answer.text
        await live.client.post(f"{API}/runs/{silent}/heartbeat", json={"rank": 0})

        families = await scrape(live)

        def of(name: str) -> list[tuple[str, float]]:
            return [(sample.labels["run"], sample.value) for sample in families[name].samples]

        assert of("tailwatch_spool_queued") == [("loud", 3.0)]
        assert of("tailwatch_spool_pending") == [("loud", 42.0)]
        assert of("tailwatch_spool_dropped") == [("loud", 1.0)]
        assert of("tailwatch_collector_overhead_ratio") == [("loud", 0.004)]
        assert of("tailwatch_spool_rejected") == []  # one rank said no number, the others nothing: absent


@pytest.mark.asyncio
async def test_idle_and_archived_runs_leave(start: Start) -> None:
    async with start(idle_after_s=1000.0) as live:
        await live.run("busy")
        idle = await live.run("idle")
        gone = await live.run("gone")
        await live.client.patch(f"{API}/runs/{gone}", json={"archived": True})
        with live.services.db.write() as connection:
            from tailwatch_service.storage import schema

            table = schema.runs
            connection.execute(table.update().where(table.c.run_id == idle).values(last_seen_at=1.0))

        families = await scrape(live)

        assert [sample.labels["run"] for sample in families["tailwatch_run_up"].samples] == ["busy"]


@pytest.mark.asyncio
async def test_names_are_escaped(start: Start) -> None:
    async with start() as live:
        await live.run('quo"te\\ \n new', project="µ")

        families = await scrape(live)

        (sample,) = families["tailwatch_run_up"].samples
        assert sample.labels == {"project": "µ", "run": 'quo"te\\ \n new'}


def test_every_metric_has_a_name_of_its_own() -> None:
    names = {name_of(metric) for metric in METRICS}

    assert len(names) == len(METRICS)
    assert name_of("log_ratio_q001") == ("tailwatch_log_ratio", "0.001")
    assert name_of("log_ratio_q999") == ("tailwatch_log_ratio", "0.999")
    assert name_of("kl_k3") == ("tailwatch_kl_k3", None)
    plain = {name.family for name in names if name.quantile is None}
    assert not plain & {name.family for name in names if name.quantile is not None}
