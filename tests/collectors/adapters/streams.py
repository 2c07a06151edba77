"""Shared by the tests of hooks that connect by themselves: a service the environment names, and what came there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwatch_collectors.adapters import base
from tailwatch_collectors.batch import Batch

if TYPE_CHECKING:
    import pytest

    from tests.collectors.conftest import FakeService

FLUSH_S = 60.0


def point_at(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the environment name the service, and the adapters' guard forget what it has said."""
    monkeypatch.setenv("TAILWATCH_URL", service.url)
    monkeypatch.setattr(base.guard, "_seen", set())


def arrived(late: base.Late, service: FakeService) -> list[Batch]:
    """The batches at the service, in order of step and part, once all is there."""
    collector = late._collector
    assert collector is not None
    assert collector.flush(FLUSH_S)
    return [service.batches[key] for key in sorted(service.batches, key=lambda key: (key[0], key[-1]))]


def created(service: FakeService) -> dict[str, Any]:
    """The fields of the run that was created."""
    (call,) = service.of("runs")
    return {**call.json, **(call.json.get("config") or {})}
