from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.service.alerts.receivers import receiver, status
from tests.service.support import API, Live, Start, make_batch, problem


async def fired(live: Live, name: str = "r", *, project: str = "p") -> dict[str, Any]:
    """A run with an alert: clamped log-probs are zeros that one side alone has."""
    run = await live.run(name, project=project)
    await live.send(run, make_batch(step=0))
    await live.closed(run, 0)
    (alert, *_) = (await live.client.get(f"{API}/runs/{run}/alerts")).json()["alerts"]
    found: dict[str, Any] = alert
    return found


@pytest.mark.asyncio
async def test_an_alert_is_listed_and_shown_with_its_evidence(start: Start) -> None:
    async with start(public_url="https://tailwatch.example") as live:
        alert = await fired(live)

        assert (alert["project"], alert["run"], alert["rule"]) == ("p", "r", "LogprobInvalid")
        assert (alert["state"], alert["fired_step"]) == ("firing", 0)
        assert alert["runbook_url"] == "https://tailwatch.example/runbooks/LogprobInvalid"
        assert alert["dashboard_url"] == f"https://tailwatch.example/runs/{alert['run_id']}?step=0"
        listed = (await live.client.get(f"{API}/alerts")).json()["alerts"]
        assert [one["alert_id"] for one in listed] == [alert["alert_id"]]
        shown = (await live.client.get(f"{API}/alerts/{alert['alert_id']}")).json()
        assert [step["step"] for step in shown["evidence"]["steps"]] == [0]
        assert shown["evidence"]["worst_tokens"]
        found = (await live.client.get(f"{API}/runs/{alert['run_id']}/findings")).json()["findings"]
        assert ("LogprobInvalid", "fired", 0) in [(f["rule"], f["transition"], f["step"]) for f in found]
        text = (await live.client.get("/metrics")).text
        line = 'tailwatch_alert_firing{project="p",rule="LogprobInvalid",run="r",severity="warning"} 1.0'
        assert line in text
        problem(await live.client.get(f"{API}/alerts/nothing"), 404, "nothing")


@pytest.mark.asyncio
async def test_acknowledge_and_silence_show_in_the_log(start: Start) -> None:
    async with start() as live:
        alert = await fired(live)
        at = f"{API}/alerts/{alert['alert_id']}"

        acked = (await live.client.post(f"{at}/ack", json={"note": "looking"})).json()
        assert (acked["state"], acked["note"], acked["acknowledged_by"]) == ("acknowledged", "looking", "open")
        silenced = (await live.client.post(f"{at}/silence", json={"duration_s": 3600})).json()
        assert silenced["state"] == "silenced"
        assert silenced["silenced_until"] > time.time() + 3000
        log = (await live.client.get(f"{API}/runs/{alert['run_id']}/events")).json()["events"]
        assert [e["kind"] for e in log if e["kind"].startswith("alert")] == [
            "alert_firing",
            "alert_acknowledged",
            "alert_silenced",
        ]
        assert "tailwatch_alert_firing{" not in (await live.client.get("/metrics")).text
        problem(await live.client.post(f"{at}/silence", json={"duration_s": 0}), 422, "duration_s")
        problem(await live.client.post(f"{at}/silence", json={}), 422, "duration_s")
        problem(await live.client.post(f"{at}/ack", json={"who": 1}), 422, "who")
        problem(await live.client.post(f"{API}/alerts/nothing/ack", json={}), 404, "nothing")
        await live.client.post(f"{API}/runs/{alert['run_id']}/events", json={"kind": "finished"})
        await until_resolved(live, at)
        problem(await live.client.post(f"{at}/ack", json={}), 409, "resolved")


async def until_resolved(live: Live, at: str) -> None:
    deadline = time.monotonic() + 60.0
    while (await live.client.get(at)).json()["state"] != "resolved":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.mark.asyncio
async def test_clients_cannot_write_the_services_own_events(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        answer = await live.client.post(f"{API}/runs/{run}/events", json={"kind": "alert_firing"})
        problem(answer, 422, "alert_firing")


@pytest.mark.asyncio
async def test_a_test_alert_says_what_became_of_it(start: Start) -> None:
    with receiver() as hook, receiver(status(404, body=b"no such hook")) as manager:
        where = {"alert_webhook_url": hook.url, "alertmanager_url": manager.url, "alerts_allow_private": True}
        async with start(**where) as live:
            sent = (await live.client.post(f"{API}/alerts/test", json={})).json()["deliveries"]
            assert {one["destination"]: one["state"] for one in sent} == {"webhook": "sent", "alertmanager": "failed"}
            assert "404: no such hook" in next(one["last_error"] for one in sent if one["last_error"])
            assert hook.bodies[0]["alerts"][0]["labels"]["alertname"] == "TailwatchTest"
            only = (await live.client.post(f"{API}/alerts/test", json={"to": "webhook"})).json()["deliveries"]
            assert [one["destination"] for one in only] == ["webhook"]
            problem(await live.client.post(f"{API}/alerts/test", json={"to": "pager"}), 422, "webhook, alertmanager")


@pytest.mark.asyncio
async def test_a_test_without_a_destination_says_what_to_set(start: Start) -> None:
    async with start() as live:
        answer = await live.client.post(f"{API}/alerts/test", json={})
        problem(answer, 422, "TAILWATCH_ALERT_WEBHOOK_URL", "TAILWATCH_ALERTMANAGER_URL")


@pytest.mark.asyncio
async def test_a_private_receiver_is_refused_unless_allowed(start: Start) -> None:
    with receiver() as hook:
        async with start(alert_webhook_url=hook.url) as live:
            (sent,) = (await live.client.post(f"{API}/alerts/test", json={})).json()["deliveries"]
    assert sent["state"] == "failed"
    assert "loopback" in sent["last_error"]
    assert hook.bodies == []


@pytest.mark.asyncio
async def test_rules_are_read_and_changed_for_a_project_and_for_a_run(start: Start) -> None:
    async with start() as live:
        run = await live.run("r", project="p")
        base = (await live.client.get(f"{API}/rules")).json()
        assert base["rules"]["KlSpike"]["checks"][0]["kind"] == "robust_z"
        assert base["changes"] == {}

        put = await live.client.put(f"{API}/rules?project=p", json={"rules": {"LogprobInvalid": {"enabled": False}}})
        assert put.status_code == 200, put.text
        assert put.json()["rules"]["LogprobInvalid"]["enabled"] is False
        own = await live.client.put(f"{API}/rules?run={run}", json={"rules": {"KlSpike": {"hits": 3}}})
        assert own.json()["rules"]["KlSpike"]["hits"] == 3
        assert own.json()["rules"]["LogprobInvalid"]["enabled"] is False
        assert own.json()["changes"] == {"KlSpike": {"hits": 3}}
        other = (await live.client.get(f"{API}/rules?project=q")).json()
        assert other["rules"]["LogprobInvalid"]["enabled"] is True
        await live.send(run, make_batch(step=0))
        await live.closed(run, 0)
        assert (await live.client.get(f"{API}/runs/{run}/alerts")).json()["alerts"] == []
        back = await live.client.put(f"{API}/rules?project=p", json={"rules": {}})
        assert back.json()["rules"]["LogprobInvalid"]["enabled"] is True


@pytest.mark.asyncio
async def test_rules_that_cannot_work_are_refused_and_nothing_is_stored(start: Start) -> None:
    async with start() as live:
        at = f"{API}/rules?project=p"
        bad = {"KlSpike": {"hits": 9}, "Mine": {"checks": [{"metric": "kl_k4", "kind": "band", "warning": 1}]}}
        found = problem(await live.client.put(at, json={"rules": bad}), 422, "kl_k3", "9 of 3")
        assert {error["column"] for error in found["errors"]} == {"KlSpike.hits", "Mine.checks.0.metric"}
        assert (await live.client.get(at)).json()["changes"] == {}
        problem(await live.client.put(f"{API}/rules", json={"rules": {}}), 422, "name a project or a run")
        problem(await live.client.put(at, json={"rules": []}), 422, "rules")
        problem(await live.client.get(f"{API}/rules?run=nothing"), 404, "nothing")


@pytest.mark.asyncio
async def test_a_key_of_one_project_reaches_its_alerts_and_rules_only(start: Start, tmp_path: Path) -> None:
    from tailwatch_service.storage import keys

    async with start() as live:
        mine = await fired(live, "a", project="p")
        other = await fired(live, "b", project="q")
        db = live.services.db
        _, secret = keys.create(db, name="k", scopes=("read", "write"), now=time.time(), project="p")
        live.services.gate.forget()
        live.client.headers["Authorization"] = f"Bearer {secret}"

        listed = (await live.client.get(f"{API}/alerts")).json()["alerts"]
        assert [one["alert_id"] for one in listed] == [mine["alert_id"]]
        problem(await live.client.get(f"{API}/alerts/{other['alert_id']}"), 404)
        problem(await live.client.post(f"{API}/alerts/{other['alert_id']}/ack", json={}), 404)
        problem(await live.client.get(f"{API}/alerts?project=q"), 403)
        problem(await live.client.put(f"{API}/rules?project=p", json={"rules": {}}), 403, "control")
        problem(await live.client.get(f"{API}/rules?project=q"), 403)
        acked = (await live.client.post(f"{API}/alerts/{mine['alert_id']}/ack", json={})).json()
        assert acked["acknowledged_by"] not in {None, "open"}


@pytest.mark.asyncio
async def test_runbooks_are_served(start: Start) -> None:
    async with start() as live:
        answer = await live.client.get("/runbooks/KlSpike")
        assert answer.text.startswith("# KlSpike")
        for name in ("Nothing", "..%2Fdesk", ".", "KlSpike.md"):
            assert (await live.client.get(f"/runbooks/{name}")).status_code == 404
