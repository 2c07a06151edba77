from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service import closing
from tailwatch_service.closing import Closer
from tailwatch_service.settings import Settings
from tailwatch_service.statistics import compute
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.storage import batches, events, pending, runs, schema, steps
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.pending import PendingStep
from tailwatch_service.types import BatchKey, Event, NewBatch, RunSpec, SeriesKey, StepKey, StepRecord

HOUR_S = 3600.0


def _summary(seed: int, *, rows: int = 2) -> summaries.Summary:
    generator = np.random.default_rng(seed)
    infer = -generator.exponential(1.0, 10 * rows)
    return summaries.summarise(
        Batch.from_arrays(
            BatchMeta(step=0),
            infer_logprobs=infer,
            train_logprobs=np.minimum(infer + generator.standard_t(2, 10 * rows) * 0.02, 0.0),
            cu_seqlens=np.arange(rows + 1) * 10,
        )
    )


class World:
    """A database, a clock that stands still, and a closer that is driven by hand."""

    def __init__(self, folder: Path, *, world_size: int | None = None) -> None:
        self.db = Database.open(None, data_dir=folder)
        self.now = 1000.0
        spec = RunSpec(project="p", name="r", world_size=world_size)
        self.run_id = runs.register(self.db, spec, now=self.now).run.run_id
        self.told: list[Event] = []
        self.settings = Settings(data_dir=folder)
        self.closer = self.new_closer()

    def new_closer(self) -> Closer:
        return Closer(self.db, settings=self.settings, clock=lambda: self.now, on_close=self.told.append)

    def series(self, **changes: Any) -> SeriesKey:
        return SeriesKey(self.run_id, "train", 1, "rollout", 0)._replace(**changes)

    def send(self, step: int, rank: int = 0, part: int = 0, **fields: Any) -> None:
        """Store a batch, and look at its series as the pipeline would ask."""
        series = self.series(**{n: fields.pop(n) for n in SeriesKey._fields if n in fields})
        look = fields.pop("look", True)
        key = BatchKey(StepKey(series, step), rank, part)
        whole = fields.pop("summary", None) or _summary(fields.pop("seed", rank * 1000 + part * 100 + step))
        given: dict[str, Any] = {
            "key": key,
            "kind": "tokens",
            "digest": summaries.to_bytes(whole)[:32],
            "final": True,
            "world_size": None,
            "train_version": None,
            "tokens": whole.tokens,
            "sequences": whole.sequences,
            "summary": summaries.to_bytes(whole),
            "segment": None,
            "recorded_at": None,
        }
        with self.db.write() as connection:
            (answer,) = batches.store(connection, [NewBatch(**{**given, **fields})], now=self.now)
        assert not isinstance(answer, Exception)
        assert answer.status == "stored"
        if look:
            self.closer.close_series(series)

    def step(self, step: int, **where: Any) -> StepRecord:
        found = steps.get(self.db, self.run_id, step=step, **where)
        assert found is not None
        return found

    def log(self) -> list[tuple[str, int | None, int]]:
        kinds = ("step_closed", "step_revised")
        found = events.last(self.db, self.run_id, limit=1000, kinds=kinds)
        return [(e.kind, e.step, e.payload["revision"]) for e in found]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def world_of_eight(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, world_size=8)
    yield made
    made.db.close()


# --- rules ---


def _pending(
    finals: Mapping[int, bool], *, moved_on: tuple[int, ...] = (), world_size: int | None = None
) -> PendingStep:
    return PendingStep(
        key=StepKey(SeriesKey("r", "train", 1, "rollout", 0), 5),
        series_id=1,
        closed=False,
        batch_count=len(finals),
        merged_count=0,
        finals=finals,
        moved_on=frozenset(moved_on),
        world_size=world_size,
        last_at=0.0,
    )


@pytest.mark.parametrize(
    ("finals", "moved_on", "world_size", "previous", "expected", "complete"),
    [
        ({0: True}, (), None, None, 1, True),  # nothing is known: those seen
        ({0: True, 1: False}, (), None, None, 2, False),
        ({0: True, 1: False}, (1,), None, None, 2, True),  # rank 1 went on to a later step
        ({0: True}, (), None, {0, 1}, 2, False),  # the previous step had two
        ({0: True}, (1,), None, {0, 1}, 2, True),  # rank 1 skipped this step
        ({0: True, 2: True}, (), None, {0, 1}, 3, False),  # one more than before, one missing
        ({0: True, 1: True}, (), 2, {0, 1, 2, 3}, 2, True),  # the world size wins over the previous step
        ({0: True}, (), 2, None, 2, False),
        ({0: True}, (1,), 2, None, 2, True),
        ({0: True, 1: False}, (), 2, None, 2, False),
        ({0: True, 1: True, 2: True}, (), 2, None, 3, True),  # one more than declared: counted, never above 1
        ({0: True, 1: True, 2: False}, (), 2, None, 3, False),
        ({0: True}, (2, 3), 2, None, 2, False),  # ranks 2 and 3 came later and do not stand in for rank 1
    ],
)
def test_expected_ranks_and_completeness(
    finals: dict[int, bool],
    moved_on: tuple[int, ...],
    world_size: int | None,
    previous: set[int] | None,
    expected: int,
    *,
    complete: bool,
) -> None:
    step = _pending(finals, moved_on=moved_on, world_size=world_size)
    before = None if previous is None else frozenset(previous)
    assert closing.expected_ranks(step, previous=before) == expected
    assert closing.is_complete(step, previous=before) is complete
    assert 0 < closing.coverage(step, expected=expected) <= 1


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], 60.0),
        ([5.0], 60.0),
        ([0.0, 10.0, 20.0], 60.0),
        ([0.0, 100.0, 200.0, 1200.0], 300.0),  # the median, not the mean
        ([0.0, 0.0, 100.0, 100.0], 300.0),  # steps that came together say nothing
        ([500.0, 0.0], 60.0),
    ],
)
def test_grace_is_three_median_step_times_and_at_least_a_minute(starts: list[float], expected: float) -> None:
    assert closing.grace_s(starts, floor_s=60.0, factor=3.0) == expected


# --- closing ---


def test_eight_ranks_close_a_step_when_the_last_is_final(world_of_eight: World) -> None:
    world = world_of_eight
    for rank in (3, 0, 7, 1, 6, 2, 5):
        world.send(0, rank)
        assert not world.step(0).closed
    world.now = 1010.0
    world.send(0, 4)
    step = world.step(0)
    assert (step.closed, step.coverage, step.expected_ranks, step.revision) == (True, 1.0, 8, 0)
    assert (step.tokens, step.sequences, step.closed_at) == (160, 16, 1010.0)
    whole = summaries.merge([_summary(rank * 1000) for rank in range(8)])
    computed = compute.metrics(whole)
    assert step.summary == summaries.to_bytes(whole)
    assert (step.metrics, step.missing) == (computed.values, computed.missing)
    assert set(step.metrics) | set(step.missing) == set(METRICS)
    assert world.log() == [("step_closed", 0, 0)]
    assert [e.seq for e in world.told] == [3]
    assert world.told[0].payload["coverage"] == 1.0
    assert runs.get(world.db, world.run_id, now=world.now).last_step == 0


def test_parts_wait_for_the_final_one(world: World) -> None:
    world.send(0, part=0, final=False)
    world.send(0, part=1, final=False)
    assert not world.step(0).closed
    world.send(0, part=2)
    assert world.step(0).summary == summaries.to_bytes(summaries.merge([_summary(p * 100) for p in range(3)]))


def test_a_rank_that_moved_on_is_done(world_of_eight: World) -> None:
    world = world_of_eight
    for rank in range(7):
        world.send(0, rank)
    world.send(1, 7)
    assert world.step(0).coverage == 7 / 8
    assert world.step(0).closed
    assert not world.step(1).closed


def test_a_declared_world_size_of_the_batch_wins_over_the_run(world_of_eight: World) -> None:
    for rank in range(2):
        world_of_eight.send(0, rank, world_size=2)
    assert (world_of_eight.step(0).closed, world_of_eight.step(0).expected_ranks) == (True, 2)


def test_without_a_world_size_the_previous_step_tells_who_is_expected(world: World) -> None:
    world.send(0, 0)  # nobody else is known yet
    assert world.log() == [("step_closed", 0, 0)]
    world.send(0, 1)
    assert world.log() == [("step_closed", 0, 0), ("step_revised", 0, 1)]
    assert (world.step(0).coverage, world.step(0).expected_ranks) == (1.0, 2)
    world.send(1, 0)
    assert not world.step(1).closed
    world.send(1, 1)
    assert world.step(1).closed


def test_missing_ranks_are_given_a_grace(world_of_eight: World) -> None:
    world = world_of_eight
    for rank in range(6):
        world.send(0, rank)
    world.now += 60.0
    world.closer.sweep()
    assert not world.step(0).closed
    world.now += 0.1
    world.closer.sweep()
    assert (world.step(0).closed, world.step(0).coverage) == (True, 6 / 8)


def test_the_grace_is_counted_from_the_last_batch_and_grows_with_the_step_time(world_of_eight: World) -> None:
    world = world_of_eight
    for step in range(4):
        for rank in range(8):
            world.send(step, rank)
        world.now += 100.0
    world.send(4, 0)
    world.now += 250.0
    world.send(4, 1)
    world.now += 299.0
    world.closer.sweep()
    assert not world.step(4).closed
    world.now += 2.0
    world.closer.sweep()
    assert (world.step(4).closed, world.step(4).coverage) == (True, 2 / 8)


def test_a_late_batch_is_merged_and_raises_the_revision(world_of_eight: World) -> None:
    world = world_of_eight
    for rank in range(7):
        world.send(0, rank)
    world.now += 61.0
    world.closer.sweep()
    closed_at = world.step(0).closed_at
    world.now += 10.0
    world.send(0, 7)
    step = world.step(0)
    assert (step.revision, step.coverage, step.closed_at) == (1, 1.0, closed_at)
    assert step.summary == summaries.to_bytes(summaries.merge([_summary(r * 1000) for r in range(8)]))
    assert world.log() == [("step_closed", 0, 0), ("step_revised", 0, 1)]


def test_a_step_far_in_the_past_closes_at_once(world: World) -> None:
    world.send(100)
    world.send(3)
    assert world.step(3).closed
    assert world.log() == [("step_closed", 100, 0), ("step_closed", 3, 0)]
    assert runs.get(world.db, world.run_id, now=world.now).last_step == 100


def test_phases_and_update_indices_are_apart(world: World) -> None:
    world.send(0, final=False)
    world.send(1, phase="update", update_index=1)
    world.send(0, phase="update", update_index=0)
    world.send(1, stream="eval")
    assert not world.step(0).closed  # a later step of another series says nothing about this one
    assert world.step(0, phase="update").closed
    assert steps.get(world.db, world.run_id, step=0, phase="update", update_index=1) is None
    world.send(1)
    assert world.step(0).closed
    assert len(steps.series_of(world.db, world.run_id)) == 4


def test_open_steps_of_an_old_attempt_close_by_grace(world_of_eight: World) -> None:
    world = world_of_eight
    world.send(7, 0)
    for rank in range(8):
        world.send(5, rank, attempt=2)
    assert not world.step(7, attempt=1).closed
    world.now += 61.0
    world.closer.sweep()
    assert world.step(7, attempt=1).coverage == 1 / 8
    assert steps.get(world.db, world.run_id, step=7) is None  # attempt 2 began at 5 and has no step 7 yet
    assert world.step(5).key.series.attempt == 2


def test_a_step_of_empty_finals_closes_with_nothing_in_it(world: World) -> None:
    nothing = summaries.merge([])
    for rank in range(2):
        world.send(0, rank, summary=nothing, world_size=2, tokens=0, sequences=0, digest=bytes([rank]) * 32)
    step = world.step(0)
    assert (step.closed, step.coverage, step.tokens, step.sequences) == (True, 1.0, 0, 0)
    computed = compute.metrics(nothing)
    assert (step.metrics, step.missing) == (computed.values, computed.missing)
    assert "kl_k3" in step.missing


def test_a_crash_between_acknowledging_and_closing_is_repaired_at_the_start(world: World) -> None:
    world.send(0, look=False)
    world.send(1, look=False)
    world.send(2, final=False, look=False)
    restarted = world.new_closer()
    restarted.sweep()
    assert world.log() == []  # nothing is overdue: only the first sweep looks at everything
    restarted.sweep(everything=True)
    assert world.log() == [("step_closed", 0, 0), ("step_closed", 1, 0)]
    world.send(0, part=1, look=False)
    world.now += 6.0
    world.new_closer().sweep()
    assert world.log()[2:] == [("step_revised", 0, 1)]


def test_closing_again_does_nothing(world: World) -> None:
    world.send(0)
    world.now += 9999.0
    for _ in range(2):
        world.closer.sweep(everything=True)
        assert world.closer.close_series(world.series()) == []
    assert world.log() == [("step_closed", 0, 0)]
    assert world.closer.close_series(world.series(stream="nowhere")) == []


def test_more_steps_than_one_page_close_in_one_pass(world: World) -> None:
    with world.db.write() as connection:
        connection.execute(sa.update(schema.runs).values(world_size=2))
    for step in range(260):
        world.send(step, look=False)
    assert world.closer.close_series(world.series()) == []
    world.send(260, rank=1, look=False)
    assert [event.step for event in world.closer.close_series(world.series())] == list(range(260))


def test_a_step_that_cannot_be_closed_does_not_hold_up_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.send(0, look=False)
    with world.db.write() as connection:
        connection.execute(sa.update(schema.batch_summaries).values(summary=b"broken"))
    world.send(1, look=False)
    assert [event.step for event in world.closer.close_series(world.series())] == [1]
    assert "closing step 0 of" in caplog.text


def test_two_replicas_close_a_step_once(world: World) -> None:
    world.send(0, look=False)
    (step,) = pending.of_series(world.db, world.series())
    parts = pending.parts(world.db, step)
    assert parts is not None
    merged = closing.merge(parts, coverage=1.0, expected=1)
    assert pending.commit(world.db, step, merged, now=1.0) is not None
    assert pending.commit(world.db, step, merged, now=2.0) is None
    assert world.log() == [("step_closed", 0, 0)]


def test_a_batch_that_arrives_during_the_merge_is_not_lost(world: World) -> None:
    world.send(0, 0, look=False)
    (step,) = pending.of_series(world.db, world.series())
    parts = pending.parts(world.db, step)
    assert parts is not None
    world.send(0, 1, look=False)
    assert pending.parts(world.db, step) is None
    assert pending.commit(world.db, step, closing.merge(parts, coverage=1.0, expected=1), now=1.0) is None
    assert [e.payload["coverage"] for e in world.closer.close_series(world.series())] == [1.0]
    assert world.step(0).tokens == 40


def test_racing_closers_and_senders_lose_nothing(world: World) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def close() -> None:
        closer = world.new_closer()
        try:
            while not stop.is_set():
                closer.close_series(world.series())
        except BaseException as error:
            failed.append(error)
            raise

    closers = [threading.Thread(target=close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for step in range(4):
        for rank in range(6):
            world.send(step, rank, look=False)
    stop.set()
    for thread in closers:
        thread.join(60)
    assert not failed
    world.closer.close_series(world.series())
    for step in range(4):
        expected = summaries.merge([_summary(rank * 1000 + step) for rank in range(6)])
        assert world.step(step).summary == summaries.to_bytes(expected)
        revisions = [revision for _, number, revision in world.log() if number == step]
        assert revisions == list(range(len(revisions)))


_ARRIVALS = [(step, rank, part) for step in range(2) for rank in range(3) for part in range(2)]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(_ARRIVALS))
def test_the_merged_bytes_do_not_depend_on_the_order_of_arrival(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[int, int, int]]
) -> None:
    world = World(tmp_path_factory.mktemp("order"), world_size=3)
    for step, rank, part in order:
        world.send(step, rank, part, final=part == 1)
    world.now += 100.0
    world.closer.sweep()
    for step in range(2):
        parts = [_summary(rank * 1000 + part * 100 + step) for rank in range(3) for part in range(2)]
        record = world.step(step)
        assert record.summary == summaries.to_bytes(summaries.merge(parts))
        assert (record.coverage, record.tokens) == (1.0, 120)
    world.db.close()


# --- afterwards ---


def _blobs(world: World) -> int:
    with world.db.read() as connection:
        query = sa.select(sa.func.count()).select_from(schema.batch_summaries)
        return int(connection.execute(query).scalar_one())


def test_batch_summaries_are_dropped_after_a_day_and_a_late_batch_still_merges(world: World) -> None:
    world.send(0, 0)
    world.send(0, 1)
    world.send(1, 0, final=False)
    world.now += 24 * HOUR_S - 1
    world.closer.housekeep()
    assert _blobs(world) == 3
    world.now += 2
    world.closer.housekeep()
    assert _blobs(world) == 1  # the open step keeps its own
    before = world.step(0)

    world.send(0, 2)
    late = world.step(0)
    base = summaries.from_bytes(before.summary)
    first = summaries.merge([base, _summary(2000)])
    assert (late.summary, late.tokens, late.coverage) == (summaries.to_bytes(first), 60, 1.0)
    world.send(0, 3)  # the summary of rank 2 is still there, and must not be merged twice
    assert world.step(0).summary == summaries.to_bytes(summaries.merge([first, _summary(3000)]))
    assert (world.step(0).tokens, world.step(0).revision) == (80, before.revision + 2)

    world.now += 24 * HOUR_S + 1
    world.closer.housekeep()
    assert _blobs(world) == 0
    assert len(batches.of_step(world.db, world.step(0).key)) == 4


def test_the_thread_closes_what_it_is_woken_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    closed = threading.Event()
    closer = Closer(world.db, settings=world.settings, clock=lambda: world.now, on_close=lambda _event: closed.set())
    closer.start()
    world.send(0, look=False)
    closer.wake(world.series())
    assert closed.wait(30)
    closer.close()
    assert world.step(0).closed
    world.db.close()


def test_the_thread_outlives_a_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    closed = threading.Event()
    merge: Callable[..., Any] = closing.merge
    failures = [ValueError("unreadable")]

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return merge(*arguments, **options)

    monkeypatch.setattr(closing, "merge", fail_once)
    closer = Closer(world.db, settings=world.settings, clock=lambda: world.now, on_close=lambda _event: closed.set())
    world.send(0, look=False)
    closer.start()
    while not caplog.records:
        assert not closed.wait(0.01)
    closer.wake(world.series())
    assert closed.wait(30)
    closer.close()
    assert "will be tried again" in caplog.text
    world.db.close()


def test_lost_runs_are_announced(world: World) -> None:
    world.now += 301.0
    world.closer.sweep()
    assert [e.payload for e in events.last(world.db, world.run_id, kinds=("state_changed",))] == [{"state": "lost"}]
