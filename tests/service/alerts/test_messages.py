from __future__ import annotations

from pathlib import Path

from tailwatch_service.alerts import messages
from tests.service.alerts.test_judging import World


def test_the_webhook_body_is_alertmanagers_version_4(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.spike()
    placed = world.one()
    world.db.close()

    body = messages.webhook(messages.payload(placed, world.desk.links))

    assert set(body) == {
        "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
        "commonAnnotations", "externalURL", "alerts",
    }  # fmt: skip
    assert (body["version"], body["status"], body["externalURL"]) == ("4", "firing", "https://tailwatch.example")
    (alert,) = body["alerts"]
    assert set(alert) == {
        "status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint",
    }  # fmt: skip
    assert alert["labels"] == {
        "alertname": "KlSpike",
        "project": "p",
        "run": "r",
        "severity": "critical",
        "service": "tailwatch",
    }
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert alert["annotations"]["runbook_url"] == "https://tailwatch.example/runbooks/KlSpike"
    assert alert["annotations"]["dashboard_url"] == f"https://tailwatch.example/runs/{world.run_id}?step=26"
    assert alert["startsAt"] == "1970-01-01T00:17:06.000Z"
    assert alert["endsAt"] == messages.NEVER
    assert alert["fingerprint"] == placed.alert.fingerprint


def test_alertmanager_hears_an_end_in_the_future_while_it_fires_and_the_real_one_after(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.spike()
    firing = messages.payload(world.one(), world.desk.links)
    for step in range(27, 32):
        world.send(step)
    resolved = messages.payload(world.one(), world.desk.links)
    world.db.close()

    (posted,) = messages.alertmanager([firing], now=2000.0, keep_s=240.0)
    assert posted["endsAt"] == messages.stamp(2240.0)
    (over,) = messages.alertmanager([resolved], now=2000.0, keep_s=240.0)
    assert over["endsAt"] == messages.stamp(1031.0)
    assert over["labels"] == posted["labels"]


def test_an_escalation_ends_the_warning_and_begins_the_critical_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.spike()
    sent = messages.payload(world.one(), world.desk.links, superseded="warning")
    world.db.close()

    critical, warning = messages.alertmanager([sent], now=2000.0, keep_s=240.0)

    assert (critical["labels"]["severity"], critical["endsAt"]) == ("critical", messages.stamp(2240.0))
    assert (warning["labels"]["severity"], warning["endsAt"]) == ("warning", messages.stamp(2000.0))
