"""`tailwatch alerts test`."""

from __future__ import annotations

import pytest

from tailwatch_service.cli import BAD_USAGE, main
from tests.service.alerts.receivers import receiver, status


def test_what_becomes_of_a_test_alert_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with receiver() as hook, receiver(status(500)) as manager:
        monkeypatch.setenv("TAILWATCH_ALERT_WEBHOOK_URL", hook.url)
        monkeypatch.setenv("TAILWATCH_ALERTMANAGER_URL", manager.url)
        monkeypatch.setenv("TAILWATCH_ALERTS_ALLOW_PRIVATE", "1")
        assert main(["alerts", "test"]) == 1
        assert main(["alerts", "test", "--to", "webhook"]) == 0
    said = capsys.readouterr()
    assert said.out.count(f"webhook: sent to {hook.url}") == 2
    assert "alertmanager: 127.0.0.1 answered 500" in said.err
    assert len(hook.bodies) == 2
    assert manager.paths == ["/api/v2/alerts"]


def test_without_a_destination_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TAILWATCH_ALERT_WEBHOOK_URL", "TAILWATCH_ALERTMANAGER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert main(["alerts", "test"]) == BAD_USAGE
    assert "set TAILWATCH_ALERT_WEBHOOK_URL or TAILWATCH_ALERTMANAGER_URL" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["ftp://a", "no address", "http://user:secret@a/"])
def test_an_address_that_is_none_is_refused_at_start(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAILWATCH_ALERT_WEBHOOK_URL", url)
    assert main(["alerts", "test"]) == BAD_USAGE
    said = capsys.readouterr().err
    assert "alert_webhook_url" in said
    assert "secret" not in said
