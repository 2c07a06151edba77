"""A collector with a spool: what goes to disk and when, what comes back, and that every item is accounted for."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import Collector, scribe, segment
from tailwatch_collectors.segment import Record
from tailwatch_collectors.spool import Spool

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

pytestmark = pytest.mark.usefixtures("hurry")

Until = Callable[[Callable[[], object]], None]
LOGPROBS = np.full((2, 3), -1.0, np.float32)


def _connect(url: str | None, root: Path, **more: Any) -> Collector:
    defaults = {"project": "p", "run": "r", "url": url, "session": "s", "spool_dir": root}
    return tailwatch.connect(**(defaults | more))


def _record(collector: Collector, *steps: int) -> None:
    for step in steps:
        collector.record(step=step, infer_logprobs=LOGPROBS, train_logprobs=LOGPROBS - step)


def _accounted(collector: Collector) -> bool:
    stats = collector.stats
    settled = stats.sent + stats.duplicates + stats.rejected + sum(stats.dropped.values())
    return stats.recorded == settled + stats.queued + stats.spooled


def _spooled_steps(root: Path) -> list[int]:
    """Steps of the batches in a spool of one collector, in the order of the disk."""
    found = [record for path in sorted(root.rglob("*.seg")) for record in segment.scan(path.read_bytes())]
    return [record.record.key["step"] for record in found if isinstance(record, segment.Found)]


def _steps(service: FakeService) -> list[int]:
    return [key[0] for key in service.batches]


@pytest.fixture
def nobody() -> str:
    """A URL at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_an_outage_far_longer_than_the_queue_loses_nothing(service: FakeService, until: Until, tmp_path: Path) -> None:
    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path, queue_batches=4)
    for step in range(100):
        _record(collector, step)
        until(lambda: collector.stats.queued < 3)
    until(lambda: collector.stats.spooled > 90)
    assert collector.stats.dropped == {}
    service.behave()
    until(lambda: collector.stats.spooled == 0)
    assert collector.flush(30)
    stats = collector.stats
    collector.close()

    assert sorted(_steps(service)) == list(range(100))
    assert stats.sent == 100
    assert stats.replayed > 90
    assert _accounted(collector)
    assert list(tmp_path.iterdir()) == []


def test_what_is_on_disk_comes_oldest_first_and_live_items_do_not_wait_for_it(
    service: FakeService, until: Until, tmp_path: Path
) -> None:
    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path)
    _record(collector, *range(40))
    until(lambda: collector.stats.spooled >= 39)
    on_disk = _spooled_steps(tmp_path)
    service.behave()
    until(lambda: service.batches)
    _record(collector, 100, 101)
    assert collector.flush(30)
    until(lambda: collector.stats.spooled == 0)
    collector.close()
    steps = _steps(service)

    assert sorted(steps) == [*range(40), 100, 101]
    assert len(on_disk) >= 39
    assert [step for step in steps if step in on_disk] == on_disk
    # Out of their order are only those that were under way, at a try that failed, when newer ones went to disk.
    failed = len(service.of("batches")) - len(steps)
    assert sum(later < earlier for earlier, later in itertools.pairwise(on_disk)) <= failed


def test_what_is_on_disk_is_not_starved_by_live_items(service: FakeService, until: Until, tmp_path: Path) -> None:
    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path)
    _record(collector, *range(30))
    until(lambda: collector.stats.spooled >= 29)
    service.always("batches", delay=0.02)
    until(lambda: service.batches and not collector._outbox.spill_all)
    _record(collector, *range(100, 130))
    until(lambda: collector.stats.sent == 60)
    collector.close()
    steps = _steps(service)
    first = next(index for index, step in enumerate(steps) if step >= 100)
    early = steps[first : first + 16]

    assert sum(step >= 100 for step in early) >= 5
    assert sum(step < 100 for step in early) >= 5


def test_what_is_on_disk_is_synced_within_the_interval_and_not_at_every_record(
    nobody: str, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    sync = Spool.sync

    def counting(spool: Spool) -> None:
        synced.append(time.monotonic())
        sync(spool)

    monkeypatch.setattr(Spool, "sync", counting)
    monkeypatch.setattr(scribe, "SYNC_INTERVAL", 0.5)
    collector = _connect(nobody, tmp_path)
    began = time.monotonic()
    for step in range(30):
        _record(collector, step)
        time.sleep(0.05)
    until(lambda: synced and collector.stats.spooled == 30)
    took = synced[-1] - began
    collector.close()

    # One more at the end, by `close`.
    assert 1 <= len(synced) - 1 <= 1 + took / 0.5


def test_a_service_that_never_comes_costs_memory_and_disk_their_bounds_and_no_more(
    nobody: str, until: Until, tmp_path: Path
) -> None:
    collector = _connect(nobody, tmp_path, queue_batches=8, spool_bytes=50_000)
    for step in range(400):
        _record(collector, step)
        assert collector.stats.queued <= 8
        assert collector.stats.spooled_bytes <= 50_000
        if step % 50 == 0:
            until(lambda: collector.stats.queued < 4)
    collector.close()
    stats = collector.stats

    assert sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) <= 50_000
    assert stats.spooled > 10
    assert stats.dropped["spool_full"] > 10
    assert stats.queued == 0
    assert _accounted(collector)


def test_the_next_process_sends_what_this_one_left(service: FakeService, nobody: str, tmp_path: Path) -> None:
    first = _connect(nobody, tmp_path, session="first", framework="own 1", config={"precision": "bf16"})
    _record(first, *range(5))
    first.scalars(step=4, values={"reward": 1.0})
    first.close(20.0)
    assert first.stats.spooled == 6
    second = _connect(None, tmp_path, session="second")
    _record(second, 5)
    second.close(20.0)

    third = _connect(service.url, tmp_path, session="third")
    _record(third, 6)
    third.close(20.0)

    assert sorted(_steps(service)) == [5, 6]  # what the first left was meant for another service
    assert third.stats.adopted == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_attempts_keep_their_order_and_nothing_comes_twice(service: FakeService, until: Until, tmp_path: Path) -> None:
    url = service.url
    service.always("runs", status=503)
    first = _connect(url, tmp_path, session="first", framework="own 1", config={"precision": "bf16"})
    _record(first, *range(5))
    first.scalars(step=4, values={"reward": 1.0})
    first.close(20.0)
    assert first.stats.spooled == 6
    service.behave()
    second = _connect(url, tmp_path, session="second")
    _record(second, 5)
    until(lambda: second.stats.adopted == 6)
    second.close()

    sessions = [call.json["session"] for call in service.of("runs") if "project" in call.json][-2:]
    assert sessions == ["first", "second"]
    assert service.of("runs")[-2].json["precision"] == "bf16"
    assert sorted(_steps(service)) == list(range(6))
    assert {batch.meta.session for batch in service.batches.values()} == {"first", "second"}
    key = [call.headers["idempotency-key"] for call in service.of("scalars")]
    assert len(key) == 1
    assert second.stats.recorded == second.stats.sent == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_url_everything_goes_to_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tailwatch"), _connect(None, tmp_path) as collector:
        _record(collector, *range(10))
        assert collector.flush(30)
        assert collector.stats.spooled == 10

    assert collector.stats.spooled == 11  # and `finished`
    assert collector.stats.dropped == {}
    assert str(tmp_path) in caplog.text
    assert "replay" in caplog.text


@pytest.mark.parametrize("trouble", ["dead", "hang", "500"])
def test_close_takes_what_is_left_to_disk_in_time(
    service: FakeService, nobody: str, trouble: str, tmp_path: Path
) -> None:
    url = nobody if trouble == "dead" else service.url
    service.always("batches", **({"hang": True} if trouble == "hang" else {"status": 500}))
    collector = _connect(url, tmp_path, timeout=60)
    _record(collector, *range(30))
    started = time.monotonic()
    collector.close(5.0)
    took = time.monotonic() - started
    stats = collector.stats

    assert took < 15
    assert stats.spooled == 30
    assert stats.dropped == {}
    assert _accounted(collector)


def test_what_is_answered_for_while_it_goes_to_disk_is_counted_once(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = _connect(nobody, tmp_path)
    append = Spool.append

    def answered_meanwhile(spool: Spool, record: Record) -> None:
        append(spool, record)
        for item in collector._outbox.items():
            if collector._outbox.remove(item):
                collector._counters.add("sent")

    monkeypatch.setattr(Spool, "append", answered_meanwhile)
    _record(collector, 0)
    collector.close(20.0)

    assert (collector.stats.sent, collector.stats.spooled) == (1, 0)
    assert _accounted(collector)
    assert list(tmp_path.rglob("*.seg"))  # the next process sends it once more, as a duplicate


def test_a_full_disk_keeps_everything_in_memory(
    service: FakeService, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swallow: None
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path, queue_batches=16)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        _record(collector, *range(20))
        until(lambda: collector.stats.spool_errors)
        assert collector.stats.queued == 16
        assert collector.stats.dropped == {"queue_full": 4}
        service.behave()
        assert collector.flush(30)
    collector.close()

    assert collector.stats.sent == 16
    assert _accounted(collector)


def test_a_disk_that_hangs_holds_up_neither_the_training_nor_its_end(
    nobody: str, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()

    def hang(descriptor: int, data: Any) -> int:
        stuck.set()
        release.wait(60)
        return len(data)

    collector = _connect(nobody, tmp_path, queue_batches=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", hang)
        _record(collector, 0)
        assert stuck.wait(30)
        started = time.monotonic()
        _record(collector, *range(1, 20))
        collector.close(0.5)
        took = time.monotonic() - started
        release.set()

    assert took < 15
    assert collector.stats.dropped["queue_full"] == 16
    assert collector.stats.dropped["closed"] == 4


def test_a_disk_that_recovers_is_used_again(
    nobody: str, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribe, "FIRST_REST", 0.01)
    monkeypatch.setattr(scribe, "LAST_REST", 0.02)
    write = os.write
    full = True

    def sometimes(descriptor: int, data: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", sometimes)
    collector = _connect(nobody, tmp_path)
    _record(collector, *range(5))
    until(lambda: collector.stats.spool_errors > 2)
    full = False
    _record(collector, 5)
    until(lambda: collector.stats.spooled == 6)
    collector.close()

    assert collector.stats.dropped == {}


def test_a_queue_that_fills_goes_to_disk_though_the_service_only_hangs(
    service: FakeService, until: Until, tmp_path: Path
) -> None:
    service.always("batches", hang=True)
    collector = _connect(service.url, tmp_path, queue_batches=10)
    for step in range(60):
        _record(collector, step)
        until(lambda: collector.stats.queued <= 6)
    assert collector.stats.dropped == {}
    service.behave()
    service.release.set()
    until(lambda: collector.stats.spooled == 0)
    assert collector.flush(30)
    collector.close()

    assert sorted(_steps(service)) == list(range(60))


def test_a_lying_service_is_treated_as_one_that_is_away(service: FakeService, until: Until, tmp_path: Path) -> None:
    service.always("batches", body=b"<html>portal</html>", content_type="text/html")
    collector = _connect(service.url, tmp_path)
    _record(collector, *range(5))
    until(lambda: collector.stats.spooled >= 4)
    assert collector.stats.dropped == {}
    service.behave()
    until(lambda: collector.stats.spooled == 0)
    assert collector.flush(30)
    collector.close()

    assert sorted(_steps(service)) == list(range(5))


def test_what_the_service_refuses_leaves_the_disk(service: FakeService, until: Until, tmp_path: Path) -> None:
    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path)
    _record(collector, *range(5))
    until(lambda: collector.stats.spooled >= 4)
    service.always("batches", status=422, body=b"{}")
    until(lambda: collector.stats.rejected == 5)
    collector.close()

    assert collector.stats.spooled == 0
    assert _accounted(collector)
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_batch_is_described_and_passed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: Until, swallow: None
) -> None:
    with caplog.at_level(logging.WARNING, "tailwatch"), _connect(None, tmp_path) as collector:
        for step in range(3):
            collector.record(step=step, infer_logprobs=LOGPROBS, train_logprobs=LOGPROBS, lengths=[9 + step, 1])
        _record(collector, 3)
        assert collector.flush(30)
        stats = collector.stats

    assert stats.dropped == {"invalid": 3}
    assert stats.spooled == 1
    assert caplog.text.count("lengths: must be") == 1


def test_collectors_of_one_process_have_shelves_of_their_own(service: FakeService, tmp_path: Path) -> None:
    collectors = [_connect(None, tmp_path, run=f"r{n}") for n in range(3)]
    for collector in collectors:
        _record(collector, *range(3))
        assert collector.flush(30)
    assert len(list(tmp_path.iterdir())) == 3
    for collector in collectors:
        collector.close()
    last = _connect(service.url, tmp_path, run="last")
    _record(last, 0)
    deadline = time.monotonic() + 30
    while last.stats.adopted < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    last.close()

    assert last.stats.adopted == 9
    assert {call.json["name"] for call in service.of("runs")} == {"r0", "r1", "r2", "last"}


def test_a_forked_child_has_a_spool_of_its_own(service: FakeService, until: Until, tmp_path: Path) -> None:
    service.always("batches", status=503)
    collector = _connect(service.url, tmp_path)
    _record(collector, *range(3))
    until(lambda: collector.stats.spooled == 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            own = collector.stats.spooled == 0
            collector.record(step=10, infer_logprobs=LOGPROBS, train_logprobs=LOGPROBS, stream="child")
            collector.close(20.0)
            code = 0 if own and collector.stats.spooled == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0) == (child, 0)
    assert collector.stats.spooled == 3
    service.behave()
    until(lambda: collector.stats.spooled == 0)
    collector.close()
    other = _connect(service.url, tmp_path)
    until(lambda: other.stats.adopted == 1)
    other.close()

    assert sorted(key[0] for key in service.batches) == [0, 1, 2, 10]
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys, time
import numpy as np
import tailwatch_collectors as tailwatch
collector = tailwatch.connect(project="p", run="r", url=sys.argv[1], session="s", spool_dir=sys.argv[2])
x = np.full((2, 3), -1.0, np.float32)
for step in range(20):
    collector.record(step=step, infer_logprobs=x, train_logprobs=x)
deadline = time.monotonic() + 60
while collector.stats.spooled < 20 and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trainer_that_is_killed_during_an_outage_loses_nothing_that_was_on_disk(
    service: FakeService, nobody: str, until: Until, tmp_path: Path
) -> None:
    environ = {**os.environ}
    service.always("runs", status=503)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, service.url, str(tmp_path)], timeout=120, check=False, env=environ
    )
    assert done.returncode == -9
    service.behave()
    collector = _connect(service.url, tmp_path, session="next")
    until(lambda: collector.stats.adopted == 20)
    collector.close()

    assert sorted(_steps(service)) == list(range(20))


def test_only_two_threads_however_many_record(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # of other tests, which may still be on their way out
    with _connect(None, tmp_path) as collector:
        threads = [threading.Thread(target=_record, args=(collector, step)) for step in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        new = set(threading.enumerate()) - before
        assert [thread.name for thread in new if thread.name.startswith("tailwatch")] == ["tailwatch-scribe"]
        assert collector.flush(30)
        assert collector.stats.spooled == 50
