"""The budget of overhead: what is measured, when a level is given up, and when it is taken back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import overhead
from tailwatch_collectors.collector import OVERHEAD_METRIC
from tailwatch_collectors.overhead import DOWN_AFTER, UP_AFTER, WINDOW, Change, Meter

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

Until = Callable[[Callable[[], object]], None]


class Clock:
    """Windows one after the other, each with a share of its own."""

    def __init__(self, budget: float) -> None:
        self.now = 100.0
        self.cpu = 0.0
        self.meter = Meter(budget=budget, now=self.now)
        self.window(0.0)  # the first is not judged

    def window(self, share: float) -> Change | None:
        self.meter.blocked(share * WINDOW / 2)
        self.cpu += share * WINDOW / 2
        self.meter.cpu("sender", self.cpu)
        assert self.meter.turn(self.now + WINDOW / 2) is None
        self.now += WINDOW
        return self.meter.turn(self.now)


def test_the_share_is_of_calls_and_threads_over_wall_time() -> None:
    clock = Clock(0.5)
    clock.window(0.25)

    assert clock.meter.share == pytest.approx(0.25)
    assert clock.meter.total(clock.now) == pytest.approx(0.125)


def test_levels_are_given_up_one_by_one_and_taken_back() -> None:
    clock = Clock(0.01)
    downs = []
    for _ in range(5 * DOWN_AFTER):
        change = clock.window(0.02)
        if change is not None:
            assert change.down
            downs.append((change.before, change.now))
    assert downs == [("full", "edge"), ("edge", "sample"), ("sample", "count")]
    assert clock.meter.level == "count"
    ups = []
    for _ in range(4 * UP_AFTER):
        change = clock.window(0.001)
        if change is not None:
            assert not change.down
            ups.append(change.now)

    assert ups == ["sample", "edge", "full"]


def test_one_bad_window_and_the_band_between_change_nothing() -> None:
    clock = Clock(0.01)
    for share in [0.02, 0.008] * 20:
        assert clock.window(share) is None
    for _ in range(DOWN_AFTER):
        clock.window(0.02)
    assert clock.meter.level == "edge"
    for share in [0.001, 0.001, 0.001, 0.008] * 10:
        assert clock.window(share) is None

    assert clock.meter.level == "edge"


def test_the_first_window_is_not_judged_and_no_budget_is_no_bound() -> None:
    meter = Meter(budget=0.01, now=0.0)
    meter.blocked(10.0)
    assert meter.turn(WINDOW) is None
    assert meter.share == pytest.approx(10 / WINDOW)
    free = Clock(0.0)
    for _ in range(10):
        free.window(0.9)

    assert free.meter.level == "full"


def test_what_is_skipped() -> None:
    meter = Meter(budget=0.01, now=0.0)
    kept: dict[str, list[int]] = {}
    for level in overhead.LEVELS:
        meter.level = level
        kept[level] = [step for step in range(31) if not meter.skips(step)]

    assert kept == {"full": list(range(31)), "edge": list(range(31)), "sample": [0, 10, 20, 30], "count": []}


def test_a_collector_degrades_says_so_and_goes_on_counting(
    service: FakeService, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overhead, "WINDOW", 0.05)
    x = np.full((2, 3), -1.0, np.float32)
    with (
        caplog.at_level(logging.WARNING, "tailwatch"),
        tailwatch.connect(
            project="p", run="r", url=service.url, session="s", overhead_budget=1e-7, heartbeat=0.02
        ) as collector,
    ):
        step = 0
        deadline = time.monotonic() + 30
        while collector.stats.level != "count" and time.monotonic() < deadline:
            collector.record(step=step, infer_logprobs=x, train_logprobs=x)
            step += 1
            time.sleep(0.002)
        until(lambda: service.of("heartbeat")[-1].json["level"] == "count")
        collector.record(step=10 * step, infer_logprobs=x, train_logprobs=x)
        collector.scalars(step=step, values={"reward": 1.0})
        assert collector.flush(30)
        stats = collector.stats

    events = [call.json for call in service.of("events") if call.json["kind"] == "collector_degraded"]
    assert [(event["payload"]["before"], event["payload"]["now"]) for event in events] == [
        ("full", "edge"),
        ("edge", "sample"),
        ("sample", "count"),
    ]
    assert stats.dropped["overhead"] >= 1
    assert stats.overhead > 0
    assert service.of("summaries")
    assert any(OVERHEAD_METRIC in call.json["values"] for call in service.of("scalars"))
    assert any("reward" in call.json["values"] for call in service.of("scalars"))
    assert "from full to edge" in caplog.text
    settled = stats.sent + stats.duplicates + stats.rejected + sum(stats.dropped.values())
    assert stats.recorded == settled + stats.queued


def test_time_in_our_calls_is_measured(service: FakeService) -> None:
    x = np.full((2, 3), -1.0, np.float32)
    with tailwatch.connect(project="p", run="r", url=service.url, session="s", overhead_budget=0) as collector:
        for step in range(20):
            collector.record(step=step, infer_logprobs=x, train_logprobs=x)
        assert collector.flush(30)
        assert 0 < collector.stats.overhead < 1
