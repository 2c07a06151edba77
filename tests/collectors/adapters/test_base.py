"""What adapters share: names and defaults of a run, hooks' own collector, configurations of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tailwatch_collectors import ConfigurationError
from tailwatch_collectors.adapters import base
from tests.collectors.adapters.streams import FLUSH_S

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService


@pytest.fixture
def late(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[base.Late]:
    monkeypatch.setenv("TAILWATCH_URL", service.url)
    late = base.Late()
    yield late
    late.finished()


def _described(late: base.Late, service: FakeService, **options: Any) -> dict[str, Any]:
    collector = late.get(lambda: base.named("frame-work", **options))
    assert collector is not None
    collector.event("hello")
    assert collector.flush(FLUSH_S)
    (call,) = service.of("runs")
    return {**call.json, **(call.json.get("config") or {})}


def test_the_trainer_names_the_run(late: base.Late, service: FakeService) -> None:
    run = _described(late, service, project="math", run="x" * 300, rank=0, world_size=3, config={"top_p": None})
    assert (run["project"], run["name"], run["world_size"]) == ("math", "x" * 256, 3)
    assert run["framework"] == "frame-work"
    assert "top_p" not in run


def test_the_environment_wins_and_arguments_win_over_it(
    late: base.Late, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILWATCH_PROJECT", "of-the-environment")
    monkeypatch.setenv("TAILWATCH_RUN", "of-the-environment")
    settings = {"run": "argument", "config": {"temperature": 0.5}}
    config = {"temperature": 1.0, "precision": np.dtype("float32")}
    run = _described(late, service, project="trainer", run="trainer", config=config, settings=settings)
    assert (run["project"], run["name"]) == ("of-the-environment", "argument")
    assert (run["temperature"], run["precision"]) == (0.5, "float32")


def test_without_any_name_there_is_one(late: base.Late, service: FakeService) -> None:
    run = _described(late, service, project="  ", run="")
    assert (run["project"], run["name"]) == ("project", "run")


def test_a_wrong_setting_is_said_once_and_nothing_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base.guard, "_seen", set())
    tries: list[int] = []

    def make() -> Any:
        tries.append(1)
        raise ConfigurationError("url 'x' cannot be read")

    late = base.Late()
    assert [late.get(make), late.get(make)] == [None, None]
    assert len(tries) == 1
    assert caplog.text.count("url 'x' cannot be read") == 1
    late.end_step(3)
    late.finished()


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("URL", "http://x", True), ("SPOOL_DIR", "/x", True), ("RUN", "x", False)]
)
def test_hooks_that_load_by_themselves_wait_for_a_destination(
    name: str, value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILWATCH_SPOOL_DIR", raising=False)
    monkeypatch.setenv(f"TAILWATCH_{name}", value)
    assert base.wanted() is expected


def test_versions() -> None:
    assert base.version("numpy") == np.__version__
    assert base.version("no-such-distribution") == ""


class _Strict(dict[str, Any]):
    """A configuration that refuses what it does not have."""

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            raise KeyError(key)
        return self[key]


def test_configurations_of_any_kind() -> None:
    config = SimpleNamespace(rollout=_Strict(sampling={"temperature": 0.5}))
    assert base.look(config, "rollout", "sampling", "temperature") == 0.5
    assert base.look(config, "rollout", "absent", "deeper") is None
    assert base.look(config, "absent") is None
    assert base.look(None, "anything") is None


def test_advantages_become_one_number_where_they_are_constant() -> None:
    masks = [np.array([True, False, True]), np.array([False, False])]
    rows = [np.array([2.0, 9.0, 2.0], np.float32), np.array([1.0, 3.0], np.float32)]
    first, second = base.per_sequence(rows, masks)
    assert first == 2.0
    assert np.isnan(second)
    rows[0][2] = 2.5
    found = base.per_sequence(rows, masks)
    assert [row.tolist() for row in found] == [[2.0, 9.0, 2.5], [1.0, 3.0]]
