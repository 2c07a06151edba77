"""Messages: an alert in the forms that receivers understand. Pure.

The payload is the alert as it stood when the outbox took it in. Labels are what Alertmanager tells alerts apart by, so
severity is one of them: an escalation ends the warning and begins the critical one in the same message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from tailwatch_service.alerts.links import Links
from tailwatch_service.storage.alerts import Placed
from tailwatch_service.types import Alert, Finding

NEVER = "0001-01-01T00:00:00Z"
"""How Alertmanager writes an end that is not known."""

TEST = "TailwatchTest"
"""Name of a test alert."""


def payload(placed: Placed, links: Links, *, superseded: str | None = None) -> dict[str, Any]:
    """What the outbox keeps of an alert.

    Args:
        placed: the alert and its run's names.
        links: addresses of this service.
        superseded: the severity it had until now, where it just became worse.
    """
    alert = placed.alert
    labels = {
        "alertname": alert.rule,
        "project": placed.project,
        "run": placed.run,
        "severity": alert.severity,
        "service": "tailwatch",
    } | ({"slice": alert.slice} if alert.slice else {})
    annotations = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": links.runbook(alert.rule),
        "dashboard_url": links.run(alert.run_id, step=alert.fired_step),
    } | ({"acknowledged_by": alert.acknowledged_by} if alert.acknowledged_by else {})
    return {
        "labels": labels,
        "annotations": annotations,
        "starts_at": alert.fired_at,
        "ends_at": alert.resolved_at,
        "fingerprint": alert.fingerprint,
        "url": links.run(alert.run_id, step=alert.fired_step),
        "root": links.root,
        "superseded": superseded,
    }


def sample(links: Links, *, project: str, by: str, now: float) -> dict[str, Any]:
    """A test alert: looks like the others, means nothing, and ends by itself."""
    finding = Finding(
        rule=TEST, slice="", transition="fired", severity="warning", metric="kl_k3", value=None, threshold=None,
        baseline=None, score=None, basis="", hits=0, window=0,
    )  # fmt: skip
    alert = Alert(
        alert_id="", run_id="", rule=TEST, slice="", fingerprint="0" * 16, state="firing", severity="warning",
        finding=finding, summary="Test alert from Tailwatch: delivery works",
        description=f"Sent by {by} to see whether alerts arrive. Nothing is wrong.", evidence={}, started_at=now,
        started_step=None, fired_at=now, fired_step=None, acknowledged_at=None, acknowledged_by=None,
        silenced_until=None, note=None, notified=True, resolved_at=None, resolved_step=None, resolved_reason=None,
        updated_at=now,
    )  # fmt: skip
    made = payload(Placed(alert, project, "test"), links)
    made["annotations"]["dashboard_url"] = made["url"] = f"{links.root}/"
    return made | {"ends_after_s": 60.0}


def webhook(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Alertmanager's webhook body, version 4, of one alert."""
    status = "firing" if sent["ends_at"] is None else "resolved"
    group = {name: sent["labels"][name] for name in ("alertname", "project", "run")}
    key = ", ".join(f'{name}="{value}"' for name, value in group.items())
    return {
        "version": "4",
        "groupKey": f"{{}}:{{{key}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "tailwatch",
        "groupLabels": group,
        "commonLabels": sent["labels"],
        "commonAnnotations": sent["annotations"],
        "externalURL": sent["root"],
        "alerts": [
            {
                "status": status,
                "labels": sent["labels"],
                "annotations": sent["annotations"],
                "startsAt": stamp(sent["starts_at"]),
                "endsAt": NEVER if sent["ends_at"] is None else stamp(sent["ends_at"]),
                "generatorURL": sent["url"],
                "fingerprint": sent["fingerprint"],
            }
        ],
    }


def alertmanager(sent: Sequence[Mapping[str, Any]], *, now: float, keep_s: float) -> list[dict[str, Any]]:
    """The body of POST /api/v2/alerts.

    Args:
        sent: payloads.
        now: Unix seconds.
        keep_s: how long what fires is kept without being heard of again.
    """
    made = []
    for one in sent:
        ends_at = one["ends_at"] if one["ends_at"] is not None else now + one.get("ends_after_s", keep_s)
        made.append(_posted(one, one["labels"], ends_at))
        if one.get("superseded"):
            made.append(_posted(one, {**one["labels"], "severity": one["superseded"]}, now))
    return made


def stamp(at: float) -> str:
    """Unix seconds as RFC 3339."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _posted(sent: Mapping[str, Any], labels: Mapping[str, str], ends_at: float) -> dict[str, Any]:
    return {
        "labels": dict(labels),
        "annotations": sent["annotations"],
        "startsAt": stamp(min(sent["starts_at"], ends_at)),
        "endsAt": stamp(ends_at),
        "generatorURL": sent["url"],
    }
