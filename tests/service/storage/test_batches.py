from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from tailwatch_service.storage import batches, schema, steps
from tailwatch_service.storage.database import Database
from tailwatch_service.types import BatchKey, NewBatch, SeriesKey, StepKey

Make = Callable[..., NewBatch]
Store = Callable[..., list[Any]]
Statuses = Callable[[list[Any]], list[str]]


def _rows(db: Database, table: sa.Table) -> int:
    with db.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_ids_depend_on_every_part_of_the_key() -> None:
    key = BatchKey(StepKey(SeriesKey("r", "train", 1, "rollout", 0), 7), 3, 2)
    series = key.step_key.series
    others = [
        *(key._replace(step_key=StepKey(other, 7)) for other in (
            series._replace(run_id="q"), series._replace(stream="eval"), series._replace(attempt=2),
            series._replace(phase="update"), series._replace(update_index=1),
        )),
        key._replace(step_key=StepKey(series, 8)),
        key._replace(rank=2, part=3),
        key._replace(part=3),
    ]  # fmt: skip
    ids = {batches.batch_id(k) for k in [key, *others]}
    assert len(ids) == 9
    assert batches.batch_id(key) == batches.batch_id(BatchKey(StepKey(SeriesKey(*series), 7), 3, 2))
    assert all(len(i) == 32 for i in ids)


def test_the_same_content_is_a_duplicate_and_adds_nothing(
    db: Database, new_batch: Make, store: Store, statuses: Statuses
) -> None:
    first = store(new_batch(), now=1.0)
    again = store(new_batch(), now=2.0)
    assert statuses(first + again) == ["stored", "duplicate"]
    assert first[0].batch_id == again[0].batch_id
    assert (_rows(db, schema.batches), _rows(db, schema.batch_summaries), _rows(db, schema.steps)) == (1, 1, 1)


def test_other_content_of_the_same_kind_conflicts_and_of_another_kind_does_not(
    db: Database, new_batch: Make, store: Store, statuses: Statuses
) -> None:
    store(new_batch())
    answers = store(new_batch(seed=1), new_batch(seed=1, kind="summary"), new_batch(rank=1))
    assert statuses(answers) == ["KeyConflict", "duplicate", "stored"]
    assert "step 0, rank 0, part 0, attempt 1 is stored" in str(answers[0])
    assert _rows(db, schema.batches) == 2


def test_equal_keys_within_one_group(db: Database, new_batch: Make, store: Store, statuses: Statuses) -> None:
    answers = store(new_batch(), new_batch(), new_batch(seed=1), new_batch(kind="summary", seed=2))
    assert statuses(answers) == ["stored", "duplicate", "KeyConflict", "duplicate"]
    assert _rows(db, schema.batches) == 1


@pytest.mark.parametrize("grouped", [True, False])
def test_an_idempotency_key_stands_for_its_first_batch(
    db: Database, new_batch: Make, store: Store, statuses: Statuses, *, grouped: bool
) -> None:
    group = [
        new_batch(idempotency_key="k"),
        new_batch(idempotency_key="k"),
        new_batch(idempotency_key="k", part=1),  # another key, the same content: the first batch answers
        new_batch(idempotency_key="k", part=1, seed=1),
        new_batch(idempotency_key="k", seed=1),
        new_batch(part=1, seed=1),
    ]
    answers = store(*group) if grouped else [store(batch)[0] for batch in group]
    assert statuses(answers) == ["stored", "duplicate", "duplicate", "KeyConflict", "KeyConflict", "stored"]
    assert answers[2].key == group[0].key
    assert "Idempotency-Key 'k'" in str(answers[3])
    assert (_rows(db, schema.batches), _rows(db, schema.idempotency_keys)) == (2, 1)


def test_a_duplicate_gives_its_idempotency_key_to_the_stored_batch(
    new_batch: Make, store: Store, statuses: Statuses
) -> None:
    store(new_batch())
    assert statuses(store(new_batch(idempotency_key="late"))) == ["duplicate"]
    assert statuses(store(new_batch(idempotency_key="late", part=5))) == ["duplicate"]


def test_idempotency_keys_belong_to_a_run(db: Database, new_batch: Make, store: Store, statuses: Statuses) -> None:
    from tailwatch_service.storage import runs
    from tailwatch_service.types import RunSpec

    other = runs.register(db, RunSpec(project="math", name="other"), now=0.0).run.run_id
    group = [new_batch(idempotency_key="k"), new_batch(idempotency_key="k", run=other, seed=1)]
    assert statuses(store(*group)) == ["stored", "stored"]


def test_an_unknown_run_does_not_touch_its_neighbours(
    db: Database, new_batch: Make, store: Store, statuses: Statuses
) -> None:
    answers = store(new_batch(run="nowhere", idempotency_key="k"), new_batch())
    assert statuses(answers) == ["NotFound", "stored"]
    assert (_rows(db, schema.series), _rows(db, schema.idempotency_keys)) == (1, 0)


def test_steps_count_their_batches_while_open(db: Database, run_id: str, new_batch: Make, store: Store) -> None:
    store(new_batch(step=4), new_batch(step=4, part=1), now=10.0)
    store(new_batch(step=4, rank=1), new_batch(step=2), now=20.0)
    step = steps.get(db, run_id, step=4)
    assert step is not None
    assert (step.closed, step.tokens, step.sequences, step.first_at, step.closed_at) == (False, 60, 6, 10.0, None)
    assert (step.summary, step.metrics, step.missing) == (b"", {}, {})
    with db.read() as connection:
        assert connection.execute(sa.select(schema.series.c.first_step)).scalars().all() == [2]
        assert connection.execute(sa.select(schema.series_ranks.c.rank, schema.series_ranks.c.last_step)).all() == [
            (0, 4),
            (1, 4),
        ]


def test_batches_of_a_step_by_rank_and_part(db: Database, new_batch: Make, store: Store) -> None:
    group = [new_batch(rank=1), new_batch(part=1, final=False, segment="s" * 49), new_batch(step=1), new_batch()]
    store(*group, now=3.0)
    found = batches.of_step(db, group[0].key.step_key)
    assert [(b.rank, b.part, b.final) for b in found] == [(0, 0, True), (0, 1, False), (1, 0, True)]
    assert (found[1].segment, found[1].received_at, found[1].digest) == ("s" * 49, 3.0, group[1].digest)
    assert batches.of_step(db, group[0].key.step_key._replace(step=9)) == []


def test_segments_in_use(db: Database, new_batch: Make, store: Store) -> None:
    batch = new_batch()
    name = f"{batches.batch_id(batch.key)}-{batch.digest[:8].hex()}"
    refused = f"{batches.batch_id(batch.key)}-{'0' * 16}"
    store(new_batch(segment=name))
    assert batches.segments_in_use(db, {name, refused, f"{'f' * 32}-{'0' * 16}"}) == {name}
