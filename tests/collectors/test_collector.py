"""What the trainer holds: every layout arrives, nothing raises, everything is counted, forks and exits are safe."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tailwatch_collectors as tailwatch
from tailwatch_collectors import Batch, BatchError, Collector, ConfigurationError
from tailwatch_collectors import collector as collector_module

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

pytestmark = pytest.mark.usefixtures("hurry")

Until = Callable[[Callable[[], object]], None]

RNG = np.random.default_rng(7)
B, T = 3, 5
LENGTHS = [5, 2, 0]
INFER_BT = -RNG.random((B, T), np.float32)
TRAIN_BT = -RNG.random((B, T), np.float32)
MASK_BT = np.arange(T)[None] < np.array(LENGTHS)[:, None]
INFER_N = INFER_BT[MASK_BT]
TRAIN_N = TRAIN_BT[MASK_BT]
LOGPROBS = np.full((2, 3), -1.0, np.float32)


def _connect(service: FakeService, **more: Any) -> Collector:
    return tailwatch.connect(**({"project": "p", "run": "r", "url": service.url, "session": "s"} | more))


def _record(collector: Collector, step: Any, /, **more: Any) -> None:
    arguments: dict[str, Any] = {"step": step, "infer_logprobs": LOGPROBS, "train_logprobs": LOGPROBS}
    collector.record(**(arguments | more))


def _sent(service: FakeService, **arguments: Any) -> Batch:
    """The one batch that arrives for one call of `record`."""
    with _connect(service) as collector:
        collector.record(step=4, **arguments)
        assert collector.flush(30)
    (batch,) = service.batches.values()
    return batch


def _left_padded(array_BT: Any) -> Any:
    out = np.zeros_like(array_BT)
    for row, length in enumerate(LENGTHS):
        out[row, T - length :] = array_BT[row, :length]
    return out


def _rows(array_BT: Any) -> list[Any]:
    return [array_BT[row, :length] for row, length in enumerate(LENGTHS)]


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"infer_logprobs": INFER_BT, "train_logprobs": TRAIN_BT, "mask": MASK_BT},
    "lengths": {"infer_logprobs": INFER_BT, "train_logprobs": TRAIN_BT, "lengths": LENGTHS},
    "left": {
        "infer_logprobs": _left_padded(INFER_BT),
        "train_logprobs": _left_padded(TRAIN_BT),
        "mask": _left_padded(MASK_BT),
        "padding": "left",
    },
    "packed": {"infer_logprobs": INFER_N, "train_logprobs": TRAIN_N, "cu_seqlens": [0, 5, 7, 7]},
    "lists": {"infer_logprobs": _rows(INFER_BT), "train_logprobs": _rows(TRAIN_BT)},
    "torch": {
        "infer_logprobs": torch.from_numpy(INFER_BT),
        "train_logprobs": torch.from_numpy(TRAIN_BT).double().requires_grad_(),
        "mask": torch.from_numpy(MASK_BT),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_arrives_as_the_same_batch(service: FakeService, layout: str) -> None:
    batch = _sent(service, **LAYOUTS[layout])

    assert batch.lengths_B.tolist() == LENGTHS
    np.testing.assert_array_equal(batch.infer_logprobs_N, INFER_N)
    np.testing.assert_array_equal(batch.train_logprobs_N, TRAIN_N)


def test_bfloat16_arrives_with_the_value_it_had(service: FakeService) -> None:
    infer = torch.from_numpy(INFER_BT).bfloat16()

    batch = _sent(service, infer_logprobs=infer, train_logprobs=torch.from_numpy(TRAIN_BT).half())

    np.testing.assert_array_equal(batch.infer_logprobs_N, infer.float().numpy().ravel())
    assert batch.train_logprobs_N.dtype == np.float32


def test_columns_and_metadata_arrive(service: FakeService) -> None:
    with _connect(service, rank=1, world_size=2, framework="own 1") as collector:
        collector.record(
            step=np.int64(4),
            infer_logprobs=INFER_BT,
            train_logprobs=TRAIN_BT,
            train_version=torch.tensor(9),  # type: ignore[arg-type]
            infer_version=8,
            phase="update",
            update_index=2,
            stream="eval",
            reward=[1.0, 0.0, 0.5],
            source=["a", "b", "a"],
            text=["private"] * B,
        )
        assert collector.flush(30)
    (batch,) = service.batches.values()

    meta = batch.meta
    assert (meta.step, meta.rank, meta.world_size, meta.part, meta.final) == (4, 1, 2, 0, True)
    assert (meta.phase, meta.update_index, meta.stream) == ("update", 2, "eval")
    assert (meta.session, meta.train_version, meta.framework) == ("s", 9, "own 1")
    assert meta.recorded_at is not None
    assert abs(meta.recorded_at - time.time()) < 300
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [8, 8, 8]
    assert batch.source == ("a", "b", "a")
    assert batch.text is None  # off unless asked for


def test_text_leaves_only_when_asked_for(service: FakeService) -> None:
    with _connect(service, send_text=True, compression="zstd") as collector:
        _record(collector, 0, text=["one", "two"])
        assert collector.flush(30)
    (batch,) = service.batches.values()

    assert batch.text == ("one", "two")


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [_copied(row) for row in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _overwrite(value: Any) -> None:
    for array in value if isinstance(value, list) else [value]:
        array[...] = 7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trainer_may_reuse_its_buffers(service: FakeService, layout: str) -> None:
    service.script("runs", delay=0.2)
    arguments = {name: _copied(value) for name, value in LAYOUTS[layout].items()}
    with _connect(service) as collector:
        collector.record(step=0, **arguments)
        for name in ("infer_logprobs", "train_logprobs"):
            _overwrite(arguments[name])
        assert collector.flush(30)
    (batch,) = service.batches.values()

    np.testing.assert_array_equal(batch.infer_logprobs_N, INFER_N)
    np.testing.assert_array_equal(batch.train_logprobs_N, TRAIN_N)


def test_parts_are_numbered_per_step_phase_update_and_stream(service: FakeService) -> None:
    with _connect(service) as collector:
        _record(collector, 0, final=False)
        _record(collector, 0, final=False)
        _record(collector, 0, final=False, stream="eval")
        _record(collector, 0, phase="update", update_index=1)
        _record(collector, 1, part=5, final=False)
        _record(collector, 1)
        assert collector.flush(30)

    assert list(service.batches) == [
        (0, "rollout", 0, "train", 0, 0),
        (0, "rollout", 0, "train", 0, 1),
        (0, "rollout", 0, "eval", 0, 0),
        (0, "update", 1, "train", 0, 0),
        (1, "rollout", 0, "train", 0, 5),
        (1, "rollout", 0, "train", 0, 6),
    ]


def test_end_step_closes_what_was_left_open(service: FakeService) -> None:
    with _connect(service) as collector:
        _record(collector, 0, final=False, train_version=3)
        _record(collector, 0, final=False, stream="eval")
        _record(collector, 1)
        collector.end_step(0)
        collector.end_step(0)
        collector.end_step(1)
        collector.end_step(99)
        assert collector.flush(30)
        assert collector.stats.recorded == 5

    finals = [batch for batch in service.batches.values() if batch.sequences == 0]
    assert [(b.meta.step, b.meta.stream, b.meta.part, b.meta.final) for b in finals] == [
        (0, "train", 1, True),
        (0, "eval", 1, True),
    ]
    assert finals[0].meta.train_version == 3


def test_an_empty_batch_is_sent_only_if_it_is_final(service: FakeService) -> None:
    empty = np.empty((0, 4), np.float32)
    with _connect(service) as collector:
        _record(collector, 0, infer_logprobs=empty, train_logprobs=empty, final=False)
        _record(collector, 1, infer_logprobs=empty, train_logprobs=empty)
        collector.end_step(0)
        assert collector.flush(30)
        assert collector.stats.dropped == {"empty": 1}

    assert [(key[0], key[5]) for key in service.batches] == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_logprobs": LOGPROBS[:1]},
        {"infer_logprobs": "text"},
        {"infer_logprobs": None},
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"step": None},
        {"phase": "later"},
        {"phase": []},
        {"part": 2**40},
        {"stream": ""},
        {"train_version": "new"},
        {"nonsense": [1, 2]},
        {"padding": "up", "lengths": [9, 9]},
    ],
)
@pytest.mark.usefixtures("swallow")
def test_bad_arrays_are_counted_and_never_raise(service: FakeService, wrong: dict[str, Any]) -> None:
    with _connect(service) as collector:
        _record(collector, 0, **wrong)
        _record(collector, 1)
        assert collector.flush(30)
        stats = collector.stats

    assert [key[0] for key in service.batches] == [1]
    assert stats.recorded == 2
    assert sum(stats.dropped.values()) == stats.errors == 1


@pytest.mark.usefixtures("swallow")
def test_bad_notes_are_counted_and_never_raise(service: FakeService) -> None:
    with _connect(service) as collector:
        collector.scalars(step=0, values={"reward": "high"})
        collector.scalars(step=-0.5, values={"reward": 1})  # type: ignore[arg-type]
        collector.scalars(step=0, values=None)  # type: ignore[arg-type]
        collector.event("resume", payload={"model": object()})
        collector.event("resume", payload={"all": "x" * 2_000_000})
        collector.end_step(np.zeros(3))  # type: ignore[arg-type]
        assert collector.flush(30)
        stats = collector.stats

    assert service.of("scalars") == []
    assert stats.recorded == 5
    assert sum(stats.dropped.values()) == 5
    assert stats.errors == 6


def test_under_pytest_bad_arrays_raise(service: FakeService) -> None:
    with _connect(service) as collector, pytest.raises(BatchError, match="train_logprobs"):
        _record(collector, 0, train_logprobs=LOGPROBS[:1])


def test_scalars_leave_out_what_is_no_number(service: FakeService) -> None:
    with _connect(service) as collector:
        values = {"reward": np.float32(0.5), "loss": torch.tensor(2), "kl": float("nan"), "norm": float("inf")}
        collector.scalars(step=3, values=values)
        collector.scalars(step=4, values={"kl": float("nan")})
        assert collector.flush(30)
        assert collector.stats.dropped == {"empty": 1}

    assert [call.json for call in service.of("scalars")] == [
        {"step": 3, "session": "s", "values": {"reward": 0.5, "loss": 2.0}}
    ]


def test_events(service: FakeService) -> None:
    with _connect(service) as collector:
        collector.event("checkpoint", payload={"path": "/tmp/ä"})  # noqa: S108  # a name, not a file
        collector.event("weight_sync", step=2)
        assert collector.flush(30)
        assert [call.json for call in service.of("events")] == [
            {"kind": "checkpoint", "session": "s", "payload": {"path": "/tmp/ä"}},  # noqa: S108
            {"kind": "weight_sync", "session": "s", "payload": {}, "step": 2},
        ]


@pytest.mark.parametrize(("rank", "kinds"), [(0, ["finished"]), (1, [])])
def test_leaving_the_block_finishes_the_run_once(service: FakeService, rank: int, kinds: list[str]) -> None:
    with _connect(service, rank=rank) as collector:
        _record(collector, 7)

    assert [call.json["kind"] for call in service.of("events")] == kinds
    assert [call.json["step"] for call in service.of("events")] == [7] * len(kinds)


def test_a_crash_or_a_plain_close_finishes_nothing(service: FakeService) -> None:
    def crash() -> None:
        with _connect(service) as collector:
            _record(collector, 0)
            raise RuntimeError("trainer")

    with pytest.raises(RuntimeError, match="trainer"):
        crash()
    other = _connect(service)
    _record(other, 1)
    other.close()

    assert service.of("events") == []
    assert [key[0] for key in service.batches] == [0, 1]


def test_close_twice_and_record_after(service: FakeService) -> None:
    collector = _connect(service)
    collector.close()
    collector.close()
    _record(collector, 0)
    collector.scalars(step=0, values={"a": 1})

    assert collector.stats.dropped == {"closed": 2}
    assert collector.flush(0)


def test_close_says_what_was_lost(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    service.always("batches", status=500)
    collector = _connect(service)
    _record(collector, 0)
    with caplog.at_level(logging.WARNING, "tailwatch"):
        collector.close(0)

    assert "0 of 1 items stored" in caplog.text


def test_a_batch_larger_than_the_queue(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tailwatch"), _connect(service, queue_bytes=100) as collector:
        wide = np.zeros((4, 100), np.float32)
        _record(collector, 0, infer_logprobs=wide, train_logprobs=wide)
        _record(collector, 1, infer_logprobs=wide, train_logprobs=wide)
        assert collector.stats.dropped == {"too_large": 2}

    assert caplog.text.count("too_large (further") == 1


@pytest.mark.parametrize(("policy", "kept"), [("drop-oldest", [0, 3, 4]), ("drop-newest", [0, 1, 2])])
def test_a_full_queue_follows_its_policy(service: FakeService, until: Until, policy: str, kept: list[int]) -> None:
    service.always("batches", hang=True)
    collector = _connect(service, queue_batches=3, queue_policy=policy)
    _record(collector, 0)
    until(lambda: service.of("batches"))  # under way, and so never dropped
    for step in range(1, 5):
        _record(collector, step)
    assert collector.stats.dropped == {"queue_full": 2}
    assert not collector.flush(0.01)
    service.behave()
    service.release.set()
    assert collector.flush(30)
    collector.close()

    assert [key[0] for key in service.batches] == kept


def test_without_a_url_everything_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "tailwatch"),
        tailwatch.connect(project="p", run="r") as collector,
    ):
        _record(collector, 0)
        collector.end_step(0)
        assert collector.flush()
        assert collector.directive is None
        assert collector.run_id is None

    assert collector.stats.dropped == {"no_url": 2}  # the batch, and `finished`
    assert caplog.text.count("no url") == 1


def test_environment_is_enough(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"URL": service.url, "PROJECT": "p", "RUN": "r", "SESSION": "launch"}.items():
        monkeypatch.setenv(f"TAILWATCH_{name}", value)
    with tailwatch.connect() as collector:
        _record(collector, 0)
        assert collector.flush(30)

    assert collector.session == "launch"
    assert service.calls[0].json == {"project": "p", "name": "r", "session": "launch"}


def test_configuration_errors_raise_at_connect() -> None:
    with pytest.raises(ConfigurationError, match="TAILWATCH_RUN"):
        tailwatch.connect(project="p")


def test_ranks_that_share_no_session_are_warned(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tailwatch"):
        _connect(service, session=None, world_size=8).close()
        _connect(service, session=None, world_size=1).close()

    assert caplog.text.count("TAILWATCH_SESSION") == 1


def test_threads_record_everything_once(service: FakeService) -> None:
    with _connect(service, queue_batches=1000) as collector:

        def ten() -> None:
            for _ in range(10):
                _record(collector, 0, final=False)

        threads = [threading.Thread(target=ten) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert collector.flush(60)
        assert collector.stats.sent == 80

    assert sorted(key[5] for key in service.batches) == list(range(80))


def test_an_interrupt_in_record_passes_and_corrupts_nothing(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> Batch:
        raise KeyboardInterrupt

    with _connect(service) as collector:
        with monkeypatch.context() as patch:
            patch.setattr(collector_module, "capture", interrupted)
            with pytest.raises(KeyboardInterrupt):
                _record(collector, 0)
        _record(collector, 1)
        assert collector.flush(30)
        assert collector.stats.dropped == {"error": 1}

    assert [key[0] for key in service.batches] == [1]


def test_recording_inside_a_record_does_not_hang(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a signal handler at the worst moment: while the collector's own lock is held."""
    forget = collector_module._forget
    nested: list[int] = []

    def interrupted(entries: dict[Any, Any]) -> None:
        if not nested:
            nested.append(1)
            _record(collector, 0, final=False)
        forget(entries)

    monkeypatch.setattr(collector_module, "_forget", interrupted)
    collector = _connect(service)
    thread = threading.Thread(target=_record, args=(collector, 0), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert collector.flush(30)
    collector.close()

    assert sorted(key[5] for key in service.batches) == [0, 1]


def test_recording_in_a_signal_handler_does_not_hang(service: FakeService, until: Until) -> None:
    """A handler that interrupts `record` anywhere records too, from the same thread."""
    fired = 0
    armed = True

    def handler(number: int, frame: object) -> None:
        nonlocal fired
        fired += 1
        _record(collector, 10_000 + fired)
        # Armed anew only now: a slow machine would otherwise nest handlers without end.
        if armed:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with _connect(service, queue_batches=100_000) as collector:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            try:
                for step in range(300):
                    _record(collector, step)
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert collector.flush(120)
            # A last signal, which another thread may have taken, can come while that waits.
            until(lambda: collector.stats.sent == 300 + fired)
            stats = collector.stats
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert fired > 0
    assert stats.sent == len(service.batches) == 300 + fired


def test_a_forked_child_has_its_own_queue(service: FakeService, until: Until) -> None:
    service.always("batches", status=503)
    collector = _connect(service)
    _record(collector, 0)
    _record(collector, 1)
    until(lambda: collector.stats.retries)
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forking with threads: that it works is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            empty = collector.stats == tailwatch.connect(project="p", run="r").stats
            service_up = empty and collector.run_id is None
            _record(collector, 2, stream="child")
            collector.close(20)
            code = 0 if service_up and collector.stats.sent == 1 else 2
        finally:
            os._exit(code)
    until(lambda: len([c for c in service.of("batches") if b"child" in c.body]))
    service.behave()
    until(lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
    assert collector.flush(30)
    collector.close()

    assert [(key[0], key[3]) for key in service.batches if key[3] == "train"] == [(0, "train"), (1, "train")]
    assert [key[0] for key in service.batches if key[3] == "child"] == [2]
    assert collector.stats.sent == 2
    assert collector.stats.duplicates == 0


def test_a_child_that_records_nothing_sends_nothing(service: FakeService) -> None:
    collector = _connect(service)
    _record(collector, 0)
    assert collector.flush(30)
    seen = len(service.calls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        collector_module._close_all()  # what atexit would do
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    _record(collector, 1)
    assert collector.flush(30)
    collector.close()

    assert len(service.calls) == seen + 1


EXIT = """
import sys
import numpy as np
import tailwatch_collectors as tailwatch
collector = tailwatch.connect(project="p", run="r", url=sys.argv[1], session="s")
x = np.full((2, 3), -1.0, np.float32)
for step in range(5):
    collector.record(step=step, infer_logprobs=x, train_logprobs=x)
del collector
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_exit_sends_what_is_left(service: FakeService, end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT) + end, service.url], capture_output=True, timeout=120, check=False
    )

    assert done.returncode == code
    assert [key[0] for key in service.batches] == [0, 1, 2, 3, 4]
    assert service.of("events") == []  # an exit may be a crash: nothing says finished


@pytest.mark.slow
def test_exit_with_a_hanging_service_is_bounded(service: FakeService) -> None:
    service.always("batches", hang=True)
    done = subprocess.run(
        [sys.executable, "-c", EXIT, service.url], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "0 of 5 items stored" in done.stderr
