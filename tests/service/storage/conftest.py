"""A database per test (SQLite, or the server that TAILWATCH_TEST_DATABASE_URL names), and batches to store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from tailwatch_collectors import summary as summaries
from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.storage import batches, runs
from tailwatch_service.storage.database import Database
from tailwatch_service.types import BatchKey, BatchOutcome, NewBatch, RunSpec, SeriesKey, StepKey

Store = Callable[..., list[Any]]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    url = os.environ.get("TAILWATCH_TEST_DATABASE_URL")
    if url is not None:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        engine.dispose()
    database = Database.open(url, data_dir=tmp_path)
    yield database
    database.close()


@pytest.fixture
def run_id(db: Database) -> str:
    return runs.register(db, RunSpec(project="math", name="grpo"), now=0.0).run.run_id


@pytest.fixture
def new_batch(run_id: str) -> Callable[..., NewBatch]:
    """A factory of batches of the test's run; equal seeds give equal content."""

    def make(
        *,
        step: int = 0,
        rank: int = 0,
        part: int = 0,
        attempt: int = 1,
        phase: Any = "rollout",
        update_index: int = 0,
        stream: str = "train",
        seed: int = 0,
        run: str = run_id,
        **fields: Any,
    ) -> NewBatch:
        generator = np.random.default_rng(seed)
        infer = -generator.exponential(1.0, 20)
        batch = Batch.from_arrays(
            BatchMeta(step=step, rank=rank, part=part, final=fields.get("final", True)),
            infer_logprobs=infer,
            train_logprobs=np.minimum(infer + generator.normal(0, 0.02, 20), 0.0),
            cu_seqlens=[0, 8, 20],
        )
        given: dict[str, Any] = {
            "key": BatchKey(StepKey(SeriesKey(run, stream, attempt, phase, update_index), step), rank, part),
            "kind": "tokens",
            "digest": wire.content_digest(batch),
            "final": True,
            "world_size": None,
            "train_version": None,
            "tokens": batch.tokens,
            "sequences": batch.sequences,
            "summary": summaries.to_bytes(summaries.summarise(batch)),
            "segment": None,
            "recorded_at": None,
        }
        return NewBatch(**{**given, **fields})

    return make


@pytest.fixture
def store(db: Database) -> Callable[..., list[Any]]:
    """Stores batches in one transaction; the answers."""

    def put(*group: NewBatch, now: float = 0.0) -> list[Any]:
        with db.write() as connection:
            return list(batches.store(connection, group, now=now))

    return put


@pytest.fixture
def statuses() -> Callable[[list[Any]], list[str]]:
    """What became of each batch, in a word."""

    def of(answers: list[Any]) -> list[str]:
        return [a.status if isinstance(a, BatchOutcome) else type(a).__name__ for a in answers]

    return of
