"""The sender against a service that misbehaves: what is retried, what is dropped, what is counted, in which order."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import Collector, breaker, sender, wire

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

pytestmark = pytest.mark.usefixtures("hurry")

Until = Callable[[Callable[[], object]], None]
LOGPROBS = np.full((2, 3), -1.0, np.float32)


def _connect(service: FakeService, **more: Any) -> Collector:
    return tailwatch.connect(**({"project": "p", "run": "r", "url": service.url, "session": "s"} | more))


def _record(collector: Collector, *steps: int) -> None:
    for step in steps:
        collector.record(step=step, infer_logprobs=LOGPROBS, train_logprobs=LOGPROBS - step)


def _steps(service: FakeService) -> list[int]:
    return [key[0] for key in service.batches]


def _accounted(collector: Collector) -> bool:
    stats = collector.stats
    settled = stats.sent + stats.duplicates + stats.rejected + sum(stats.dropped.values())
    return stats.recorded == settled + stats.queued


def test_the_run_is_created_with_what_is_known(service: FakeService) -> None:
    config = {"precision": "bf16", "tags": ["a"]}
    with _connect(service, framework="own 1", world_size=2, config=config, api_key="key") as collector:
        _record(collector, 0)
        assert collector.flush(30)
        assert collector.run_id == "run-1"

    assert service.calls[0].path == "/api/v1/runs"
    assert service.calls[0].headers["authorization"] == "Bearer key"
    assert service.calls[0].json == {
        "project": "p",
        "name": "r",
        "session": "s",
        "framework": "own 1",
        "world_size": 2,
        **config,
    }


def test_order_is_kept_across_kinds(service: FakeService) -> None:
    with _connect(service) as collector:
        _record(collector, 0)
        collector.scalars(step=0, values={"reward": 1})
        collector.event("weight_sync", step=0, payload={"version": 1})
        _record(collector, 1)
        assert collector.flush(30)

    routes = [call.path.rsplit("/", 1)[-1] for call in service.calls]
    assert [route for route in routes if route != "heartbeat"] == [
        "runs",
        "batches",
        "scalars",
        "events",
        "batches",
        "events",
    ]
    assert service.of("batches")[0].headers["content-type"] == wire.CONTENT_TYPE


@pytest.mark.parametrize(
    "reply",
    [
        {"status": 500},
        {"status": 503, "body": b"<html>gateway</html>", "content_type": "text/html"},
        {"status": 408},
        {"status": 425},
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"lose_answer": True},
    ],
)
def test_trouble_that_passes_loses_nothing(service: FakeService, reply: dict[str, Any]) -> None:
    service.script("batches", times=3, **reply)
    with _connect(service) as collector:
        _record(collector, 0, 1, 2)
        assert collector.flush(30)
        stats = collector.stats

    assert _steps(service) == [0, 1, 2]
    assert stats.sent + stats.duplicates == 3
    assert (stats.retries, stats.errors) == (3, 3)
    assert stats.dropped == {}


def test_a_lost_answer_is_a_duplicate_of_the_same_bytes(service: FakeService) -> None:
    service.script("batches", lose_answer=True)
    with _connect(service) as collector:
        _record(collector, 0)
        assert collector.flush(30)
        stats = collector.stats

    first, second = service.of("batches")
    assert first.body == second.body
    assert (stats.sent, stats.duplicates) == (0, 1)
    assert stats.bytes == len(first.body)


def test_a_note_keeps_its_idempotency_key(service: FakeService) -> None:
    service.script("scalars", lose_answer=True)
    with _connect(service) as collector:
        collector.scalars(step=0, values={"a": 1})
        collector.scalars(step=1, values={"a": 1})
        assert collector.flush(30)

    keys = [call.headers["idempotency-key"] for call in service.of("scalars")]
    assert keys[0] == keys[1] != keys[2]


def test_retry_after_is_honoured(service: FakeService, until: Until) -> None:
    service.script("batches", status=429, headers={"Retry-After": "1000"})
    collector = _connect(service)
    _record(collector, 0)
    until(lambda: collector.stats.errors)
    started = time.monotonic()
    time.sleep(0.1)

    assert len(service.of("batches")) == 1
    collector.close(20)
    assert _steps(service) == [0]  # close ends the wait and tries once more
    assert time.monotonic() - started < 15


def test_a_service_that_comes_up_late(service: FakeService, until: Until) -> None:
    service.always("runs", status=503)
    collector = _connect(service)
    _record(collector, 0, 1)
    until(lambda: collector.stats.retries > 3)
    assert collector.stats.queued == 2
    service.behave()
    assert collector.flush(30)
    collector.close()

    assert _steps(service) == [0, 1]


def test_a_refusal_is_counted_logged_once_and_passed(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    problem = {"title": "no", "errors": [{"row": 3, "column": "mask", "reason": "has 4\nvalues"}]}
    body = json.dumps(problem).encode()
    service.script("batches", times=2, status=422, body=body, content_type="application/problem+json")
    service.script("scalars", status=409)
    with caplog.at_level(logging.WARNING, "tailwatch"), _connect(service) as collector:
        _record(collector, 0, 1, 2)
        collector.scalars(step=1, values={"a": 1})
        assert collector.flush(30)
        stats = collector.stats

    assert _steps(service) == [2]
    assert (stats.rejected, stats.sent, stats.retries) == (3, 1, 0)
    said = [record.getMessage() for record in caplog.records if "422" in record.getMessage()]
    assert len(said) == 1
    assert "mask" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize(
    "reply",
    [
        {"body": b"<html>portal</html>", "content_type": "text/html"},
        {"body": b"{}"},
        {"body": b'{"status": "fine"}'},
        {"body": b"x" * 3_000_000},
        {"body": b""},
        {"status": 302, "headers": {"Location": "/login"}},
    ],
)
def test_a_lying_service_gets_a_few_tries(service: FakeService, reply: dict[str, Any]) -> None:
    service.always("batches", **reply)
    with _connect(service) as collector:
        _record(collector, 0, 1)
        assert collector.flush(30)
        stats = collector.stats

    assert len(service.of("batches")) == 2 * sender.UNREADABLE_TRIES
    assert stats.dropped == {"unreadable_answer": 2}
    assert (stats.sent, stats.duplicates) == (0, 0)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_tried_slowly_until_it_is_fixed(
    service: FakeService, until: Until, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    service.always("batches", status=status)
    with caplog.at_level(logging.WARNING, "tailwatch"), _connect(service) as collector:
        _record(collector, 0)
        until(lambda: len(service.of("batches")) > 3)
        service.behave()
        assert collector.flush(30)

    assert _steps(service) == [0]
    assert sum(f"HTTP {status}" in record.getMessage() for record in caplog.records) == 1


def test_a_refused_key_does_not_hold_up_the_exit(
    service: FakeService, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "LAST_BACKOFF", 1000.0)
    service.always("runs", status=401)
    collector = _connect(service)
    _record(collector, 0)
    until(lambda: collector.stats.errors)
    started = time.monotonic()
    collector.close(60)

    assert time.monotonic() - started < 30
    assert collector.stats.dropped == {"closed": 1}


def test_a_deleted_run_is_created_again(service: FakeService) -> None:
    service.script("batches", status=404)
    with _connect(service) as collector:
        _record(collector, 0, 1)
        assert collector.flush(30)

    assert service.runs == 2
    assert _steps(service) == [0, 1]
    assert service.of("batches")[-1].path == "/api/v1/runs/run-2/batches"


def test_a_run_that_stays_missing_costs_the_item(service: FakeService) -> None:
    service.script("batches", times=2, status=404)
    with _connect(service) as collector:
        _record(collector, 0, 1)
        assert collector.flush(30)
        stats = collector.stats

    assert service.runs == 2
    assert _steps(service) == [1]
    assert stats.rejected == 1


def test_refused_metadata_do_not_cost_the_run(service: FakeService) -> None:
    service.script("runs", status=422)
    with _connect(service, config={"precision": "odd"}) as collector:
        _record(collector, 0)
        assert collector.flush(30)

    assert service.of("runs")[0].json["precision"] == "odd"
    assert service.of("runs")[1].json == {"project": "p", "name": "r", "session": "s"}
    assert _steps(service) == [0]


@pytest.mark.parametrize("answer", [b"{}", b'{"run_id": 7}', b'{"run_id": ""}', b"nonsense"])
def test_a_run_without_an_id_is_asked_for_again(service: FakeService, answer: bytes) -> None:
    service.script("runs", times=3, body=answer)
    with _connect(service) as collector:
        _record(collector, 0)
        assert collector.flush(30)

    assert _steps(service) == [0]


def test_heartbeats_say_how_it_goes(service: FakeService, until: Until) -> None:
    with _connect(service, heartbeat=0.02, rank=1) as collector:
        until(lambda: len(service.of("heartbeat")) > 2)
        _record(collector, 0, 5)
        until(lambda: service.of("heartbeat")[-1].json.get("sent") == 2)

    beats = [call.json for call in service.of("heartbeat")]
    assert "step" not in beats[0]
    assert beats[-1].pop("overhead") > 0
    assert beats[-1] == {
        "session": "s",
        "attempt": 1,
        "rank": 1,
        "queued": 0,
        "dropped": 0,
        "sent": 2,
        "rejected": 0,
        "spooled": 0,
        "replayed": 0,
        "level": "full",
        "step": 5,
    }


def test_heartbeats_go_on_while_batches_fail(service: FakeService, until: Until) -> None:
    service.always("batches", status=500)
    collector = _connect(service, heartbeat=0.02)
    _record(collector, 0)
    until(lambda: service.of("batches"))
    seen = len(service.of("heartbeat"))
    until(lambda: len(service.of("heartbeat")) > seen + 2)
    collector.close(0.1)

    assert service.of("heartbeat")[-1].json["queued"] == 1


def test_a_failing_heartbeat_stops_nothing(service: FakeService) -> None:
    service.always("heartbeat", status=500)
    with _connect(service, heartbeat=0.01) as collector:
        _record(collector, 0, 1)
        assert collector.flush(30)

    assert _steps(service) == [0, 1]


def test_directive_and_metrics_are_those_of_the_last_answer(service: FakeService) -> None:
    with _connect(service) as collector:
        assert collector.directive is None
        assert collector.metrics == {}
        service.answer_more = {"directive": {"state": "on"}, "metrics": {"kl_k3": 0.5, "ess": None, "x": "no"}}
        _record(collector, 0)
        assert collector.flush(30)
        assert collector.directive == {"state": "on"}
        assert collector.metrics == {"kl_k3": 0.5}
        service.answer_more = {"directive": None}
        _record(collector, 1)
        assert collector.flush(30)
        assert collector.directive is None
        assert collector.metrics == {"kl_k3": 0.5}


@pytest.mark.parametrize("more", [{"directive": 7, "metrics": [1]}, {"directive": "x", "metrics": {"a": 1e400}}])
def test_odd_answers_are_passed_over(service: FakeService, more: dict[str, Any]) -> None:
    service.answer_more = more
    with _connect(service) as collector:
        _record(collector, 0)
        assert collector.flush(30)
        assert collector.directive is None
        assert collector.metrics == {}
        assert collector.stats.sent == 1


def test_an_item_that_breaks_the_sender_is_dropped(
    service: FakeService, swallow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = wire.encode

    def breaks(batch: tailwatch.Batch, **more: Any) -> bytes:
        if batch.meta.step == 1:
            raise MemoryError("no room")
        return encode(batch, **more)

    monkeypatch.setattr(wire, "encode", breaks)
    with _connect(service) as collector:
        _record(collector, 0, 1, 2)
        assert collector.flush(30)
        stats = collector.stats

    assert _steps(service) == [0, 2]
    assert stats.dropped == {"error": 1}
    assert stats.errors == 1


@pytest.mark.parametrize("trouble", ["dead", "hang", "slow", "500"])
def test_close_is_bounded_and_everything_is_accounted_for(service: FakeService, trouble: str) -> None:
    url = service.url
    if trouble == "dead":
        with socket.create_server(("127.0.0.1", 0)) as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
    elif trouble == "hang":
        service.always("batches", hang=True)
    elif trouble == "slow":
        service.always("batches", delay=0.1)
    else:
        service.always("batches", status=500)
    collector = _connect(service, url=url, timeout=60)
    for step in range(50):
        _record(collector, step)
    started = time.monotonic()
    collector.close(0.3)
    took = time.monotonic() - started

    stats = collector.stats
    assert took < 15
    assert stats.recorded == 50
    assert stats.queued == 0
    assert stats.dropped["closed"] > 0
    assert _accounted(collector)


def test_close_with_nothing_to_send_does_not_wait_for_a_dead_service(until: Until) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    collector = tailwatch.connect(project="p", run="r", url=f"http://127.0.0.1:{port}", session="s")
    until(lambda: collector.stats.errors)
    started = time.monotonic()
    collector.close(60)

    assert time.monotonic() - started < 30


def test_a_long_outage_is_bounded_in_items_and_bytes(service: FakeService, until: Until) -> None:
    service.always("batches", status=503)
    collector = _connect(service, queue_batches=1000, queue_bytes=10_000)
    for step in range(500):
        _record(collector, step)
        assert collector.stats.queued_bytes <= 10_000 + 4096  # one encoded batch on top
    full = collector.stats
    service.behave()
    assert collector.flush(30)
    collector.close()

    assert full.dropped["queue_full"] > 0
    assert full.queued + full.dropped["queue_full"] + full.sent == 500
    steps = _steps(service)
    assert steps == sorted(steps)
    assert steps[-1] == 499  # the oldest were dropped
    assert len(steps) > 5
    assert _accounted(collector)


def test_a_batch_under_way_is_held_once_as_what_is_sent(service: FakeService, until: Until) -> None:
    service.always("batches", status=500)
    collector = _connect(service)
    _record(collector, 0)
    until(lambda: service.of("batches"))

    assert collector.stats.queued_bytes == len(service.of("batches")[0].body)
    collector.close(0)


def test_only_one_thread_sends(service: FakeService) -> None:
    before = set(threading.enumerate())  # of other tests, which may still be on their way out
    with _connect(service) as collector:
        threads = [threading.Thread(target=_record, args=(collector, step)) for step in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        new = set(threading.enumerate()) - before
        assert [thread.name for thread in new].count("tailwatch-sender") == 1
        assert collector.flush(30)

    assert sorted(_steps(service)) == list(range(20))
    assert not any(thread.name == "tailwatch-sender" for thread in set(threading.enumerate()) - before)
