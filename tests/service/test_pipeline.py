from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.errors import TailwatchError
from tailwatch_collectors.types import BatchMeta
from tailwatch_service import pipeline as pipelines
from tailwatch_service.errors import KeyConflict, NotFound, Unavailable, Unprocessable
from tailwatch_service.pipeline import Pipeline
from tailwatch_service.settings import KeepTokens, Settings
from tailwatch_service.statistics import compute
from tailwatch_service.storage import batches, runs
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.segments import Segments, name_of
from tailwatch_service.storage.writer import Writer
from tailwatch_service.types import RunSpec, SeriesKey


class House:
    """Everything a pipeline needs, under one directory."""

    def __init__(self, folder: Path, *, keep_tokens: KeepTokens = "all") -> None:
        self.db = Database.open(None, data_dir=folder)
        self.writer = Writer(self.db)
        self.writer.start()
        self.segments = Segments(folder / "segments")
        self.woken: list[SeriesKey] = []
        self.run_id = runs.register(self.db, RunSpec(project="p", name="r"), now=0.0).run.run_id
        self.pipeline = Pipeline(
            self.db,
            self.writer,
            segments=self.segments,
            settings=Settings(data_dir=folder, keep_tokens=keep_tokens),
            wake=self.woken.append,
        )

    def files(self) -> list[str]:
        return [path.name for path in self.segments.root.rglob("*") if path.is_file()]

    def close(self) -> None:
        self.writer.close()
        self.db.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def _batch(*, seed: int = 0, **meta: Any) -> Batch:
    infer = -np.random.default_rng(seed).exponential(1.0, 30)
    return Batch.from_arrays(
        BatchMeta(**{"step": 7, **meta}),
        infer_logprobs=infer,
        train_logprobs=np.minimum(infer + 0.01, 0.0),
        cu_seqlens=[0, 10, 30],
    )


def test_a_batch_is_answered_with_its_headline(house: House) -> None:
    batch = _batch()
    body = wire.encode(batch, compression="zstd")
    done = house.pipeline.process(batch, run_id=house.run_id, body=body)
    assert (done.outcome.status, done.tokens, done.sequences) == ("stored", 30, 2)
    assert done.metrics == compute.headline(summaries.summarise(batch))
    assert done.metrics["kl_k3"] > 0
    series = SeriesKey(house.run_id, "train", 1, "rollout", 0)
    assert done.outcome.key == ((series, 7), 0, 0)
    assert house.woken == [series]
    (stored,) = batches.of_step(house.db, done.outcome.key.step_key)
    assert (stored.batch_id, stored.kind, stored.final) == (done.outcome.batch_id, "tokens", True)
    assert stored.segment == name_of(stored.batch_id, stored.digest)
    assert house.segments.read(stored.segment) == body
    again = house.pipeline.process(batch, run_id=house.run_id, body=body)
    assert (again.outcome.status, again.metrics) == ("duplicate", done.metrics)
    assert house.woken == [series]


def test_json_is_kept_as_arrow(house: House) -> None:
    batch = _batch()
    done = house.pipeline.process(batch, run_id=house.run_id)
    (stored,) = batches.of_step(house.db, done.outcome.key.step_key)
    assert stored.segment is not None
    kept = wire.decode(house.segments.read(stored.segment)).batch
    assert wire.content_digest(kept) == wire.content_digest(batch) == stored.digest


def test_tokens_are_kept_only_when_the_settings_say_so(tmp_path: Path) -> None:
    house = House(tmp_path, keep_tokens="off")
    done = house.pipeline.process(_batch(), run_id=house.run_id, body=b"arrow")
    assert house.files() == []
    assert batches.of_step(house.db, done.outcome.key.step_key)[0].segment is None
    house.close()


def test_a_refused_batch_does_not_overwrite_the_acknowledged_one(house: House) -> None:
    first = house.pipeline.process(_batch(), run_id=house.run_id, body=b"first")
    with pytest.raises(KeyConflict):
        house.pipeline.process(_batch(seed=1), run_id=house.run_id, body=b"second")
    (stored,) = batches.of_step(house.db, first.outcome.key.step_key)
    assert stored.segment is not None
    assert house.segments.read(stored.segment) == b"first"
    assert len(house.files()) == 2  # the other has no row and is swept after an hour
    assert batches.segments_in_use(house.db, house.files()) == {stored.segment}


def test_a_kill_before_the_commit_leaves_only_a_segment_without_a_row(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_batch: object) -> None:
        raise SystemExit

    monkeypatch.setattr(house.writer, "submit", killed)
    with pytest.raises(SystemExit):
        house.pipeline.process(_batch(), run_id=house.run_id, body=b"arrow")
    (name,) = house.files()
    assert batches.segments_in_use(house.db, {name}) == set()
    monkeypatch.undo()
    assert house.pipeline.process(_batch(), run_id=house.run_id, body=b"arrow").outcome.status == "stored"
    assert batches.segments_in_use(house.db, house.files()) == {name}


def test_a_batch_without_rows_has_no_segment(house: House) -> None:
    none = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=[], train_logprobs=[])
    done = house.pipeline.process(none, run_id=house.run_id)
    assert (done.tokens, done.metrics) == (0, {})
    assert house.files() == []


def test_edge_mode_shares_the_key_space(house: House) -> None:
    data = summaries.to_bytes(summaries.summarise(_batch()))
    done = house.pipeline.process_summary(data, meta=BatchMeta(step=7), run_id=house.run_id)
    assert (done.outcome.status, done.tokens, done.sequences) == ("stored", 30, 2)
    assert done.metrics == compute.headline(summaries.summarise(_batch()))
    again = house.pipeline.process_summary(data, meta=BatchMeta(step=7), run_id=house.run_id)
    tokens = house.pipeline.process(_batch(seed=5), run_id=house.run_id)
    assert (again.outcome.status, tokens.outcome.status) == ("duplicate", "duplicate")
    other = summaries.to_bytes(summaries.summarise(_batch(seed=5)))
    with pytest.raises(KeyConflict):
        house.pipeline.process_summary(other, meta=BatchMeta(step=7), run_id=house.run_id)
    with pytest.raises(TailwatchError):
        house.pipeline.process_summary(b"nonsense", meta=BatchMeta(step=8), run_id=house.run_id)


def test_sessions_and_attempts(house: House) -> None:
    def attempt(**meta: Any) -> int:
        done = house.pipeline.process(_batch(**meta), run_id=house.run_id)
        return done.outcome.key.step_key.series.attempt

    assert attempt(session="a") == 1
    assert attempt(session="b") == 2
    assert attempt(session="a", step=8) == 1
    assert attempt(attempt=1, step=9) == 1
    assert attempt(step=10) == 2
    with pytest.raises(Unprocessable, match="attempt: 3 does not exist"):
        attempt(attempt=3)
    with pytest.raises(NotFound, match="nowhere"):
        house.pipeline.process(_batch(), run_id="nowhere")
    assert len(house.files()) == 5


def test_an_idempotency_key_is_passed_on(house: House) -> None:
    first = house.pipeline.process(_batch(), run_id=house.run_id, idempotency_key="k")
    batch = _batch()
    moved = replace(batch, meta=replace(batch.meta, part=1))
    again = house.pipeline.process(moved, run_id=house.run_id, idempotency_key="k")
    assert again.outcome == replace(first.outcome, status="duplicate")


def test_a_writer_that_does_not_answer_is_reported(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "COMMIT_TIMEOUT_S", 0.05)
    with house.db.write(), pytest.raises(Unavailable, match=r"not stored within 0\.05 s"):
        # The run's attempt is read, the commit waits for the transaction that is open here.
        house.pipeline.process(_batch(attempt=1), run_id=house.run_id)


def test_submit_does_not_wait_for_the_commit(house: House) -> None:
    prepared = [house.pipeline.prepare(_batch(rank=rank), run_id=house.run_id) for rank in range(4)]
    with house.db.write():
        futures = [house.pipeline.submit(each) for each in prepared]
        assert not any(future.done() for future in futures)
        assert house.woken == []
    assert [future.result(30).status for future in futures] == ["stored"] * 4
