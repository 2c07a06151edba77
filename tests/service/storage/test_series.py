from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.testing import assert_array_equal

from tailwatch_service.storage import chunks, pending, scalars, schema, series, steps
from tailwatch_service.storage.database import Database
from tailwatch_service.storage.pending import Merged
from tailwatch_service.storage.scalars import Scalar
from tailwatch_service.types import NewBatch, SeriesKey, SeriesTable

Make = Callable[..., NewBatch]
Store = Callable[..., list[Any]]
Close = Callable[..., None]


@pytest.fixture
def close(db: Database, run_id: str, new_batch: Make, store: Store) -> Close:
    """Stores one batch for each step, closes all of them with the metrics that `value` gives, and seals."""

    def run(
        numbers: Sequence[int], *, value: Callable[[int], dict[str, float]], rank: int = 0, seal: bool = True, **at: Any
    ) -> None:
        store(*(new_batch(step=step, rank=rank, **at) for step in numbers))
        key = SeriesKey(run_id, "train", 1, "rollout", 0)._replace(**at)
        for waiting in iter(lambda: pending.of_series(db, key), []):
            for step in waiting:
                metrics = value(step.key.step)
                merged = Merged(
                    coverage=0.5,
                    expected_ranks=2,
                    tokens=1,
                    sequences=1,
                    metrics=metrics,
                    missing={},
                    summary=b"merged",
                )
                assert pending.commit(db, step, merged, now=1.0) is not None
        if seal:
            for series_id in chunks.unsealed_series(db):
                chunks.seal(db, series_id)

    return run


def _kl(step: int) -> dict[str, float]:
    return {"kl_k3": step / 7}


def _read(db: Database, run_id: str, *metrics: str, **options: Any) -> SeriesTable:
    return series.read(db, run_id, metrics=metrics or ["kl_k3"], **options)


def _unsealed(db: Database) -> list[int]:
    with db.read() as connection:
        query = sa.select(schema.steps.c.step).where(schema.steps.c.sealed.is_(sa.false()))
        return list(connection.execute(query.order_by(schema.steps.c.step)).scalars())


def _drop_rows(db: Database) -> None:
    """Make the rows' metrics unreadable, so that what is read can only come from chunks."""
    with db.write() as connection:
        sealed = schema.steps.c.sealed.is_(sa.true())
        connection.execute(sa.update(schema.steps).where(sealed).values(metrics={"kl_k3": -1.0}))


def test_a_chunk_is_sealed_when_the_next_one_begins(db: Database, run_id: str, close: Close) -> None:
    close(range(0, 520, 4), value=_kl)
    assert _unsealed(db) == [512, 516]
    _drop_rows(db)
    table = _read(db, run_id)
    assert_array_equal(table.steps_K, np.arange(0, 520, 4))
    assert_array_equal(table.columns["kl_k3"], np.arange(0, 520, 4) / 7)
    assert_array_equal(table.attempts_K, np.ones(130))
    assert table.series == SeriesKey(run_id, "train", 1, "rollout", 0)


def test_an_open_step_keeps_its_chunk_open(
    db: Database, run_id: str, close: Close, new_batch: Make, store: Store
) -> None:
    close([0, 1, 300], value=_kl, seal=False)
    store(new_batch(step=2))
    (series_id,) = chunks.unsealed_series(db)
    assert chunks.seal(db, series_id) == 0
    assert _read(db, run_id).steps_K.tolist() == [0, 1, 300]  # the open step has no metrics yet
    close([2], value=_kl, rank=1, seal=False)
    assert (chunks.seal(db, series_id), chunks.seal(db, series_id)) == (1, 0)
    assert _unsealed(db) == [300]
    assert _read(db, run_id).steps_K.tolist() == [0, 1, 2, 300]


def test_a_revised_step_lies_over_its_chunk_until_it_is_sealed_again(db: Database, run_id: str, close: Close) -> None:
    close([0, 1, 2, 256], value=_kl)
    close([1], value=lambda _step: {"kl_k3": 99.0, "ess_token": 0.5}, rank=1, seal=False)
    assert _unsealed(db) == [1, 256]
    expected = [0.0, 99.0, 2 / 7, 256 / 7]
    assert _read(db, run_id).columns["kl_k3"].tolist() == expected
    (series_id,) = chunks.unsealed_series(db)
    assert chunks.seal(db, series_id) == 1
    _drop_rows(db)
    table = _read(db, run_id, "kl_k3", "ess_token")
    assert table.columns["kl_k3"].tolist() == expected
    assert_array_equal(table.columns["ess_token"], [np.nan, 0.5, np.nan, np.nan])


def test_a_step_that_arrives_for_a_sealed_chunk_is_put_in_order(db: Database, run_id: str, close: Close) -> None:
    close([0, 5, 300], value=_kl)
    close([3], value=_kl, seal=False)
    assert _read(db, run_id).steps_K.tolist() == [0, 3, 5, 300]
    (series_id,) = chunks.unsealed_series(db)
    chunks.seal(db, series_id)
    _drop_rows(db)
    assert _read(db, run_id).columns["kl_k3"].tolist() == [0.0, 3 / 7, 5 / 7, 300 / 7]


def test_a_metric_that_does_not_exist_is_nan(db: Database, run_id: str, close: Close) -> None:
    close([0, 1, 256, 257, 512], value=lambda step: {"kl_k3": 1.0} if step in {1, 256} else {})
    table = _read(db, run_id, "kl_k3", "ess_token", "coverage")
    assert_array_equal(table.columns["kl_k3"], [np.nan, 1.0, 1.0, np.nan, np.nan])
    assert_array_equal(table.columns["ess_token"], [np.nan] * 5)
    assert_array_equal(table.columns["coverage"], [0.5] * 5)


def test_an_attempt_ends_where_a_later_one_begins(
    db: Database, run_id: str, close: Close, new_batch: Make, store: Store
) -> None:
    close(range(0, 600, 10), value=lambda _step: {"kl_k3": 1.0})
    close(range(300, 310), value=lambda _step: {"kl_k3": 2.0}, attempt=2)
    table = _read(db, run_id)
    assert table.steps_K.tolist() == [*range(0, 300, 10), *range(300, 310)]
    assert_array_equal(table.attempts_K, [1] * 30 + [2] * 10)
    assert_array_equal(table.columns["kl_k3"], [1.0] * 30 + [2.0] * 10)
    assert table.series.attempt == 2
    # The third rolls back behind the second and takes it over as soon as its first batch is there.
    store(new_batch(step=100, attempt=3))
    assert _read(db, run_id).steps_K.tolist() == list(range(0, 100, 10))
    record = steps.get(db, run_id, step=100)
    assert record is not None
    assert (record.key.series.attempt, record.closed) == (3, False)
    assert steps.get(db, run_id, step=305) is None
    old = steps.get(db, run_id, step=305, attempt=2)
    assert old is not None
    assert old.metrics == {"kl_k3": 2.0}
    newest = steps.latest(db, run_id)
    assert newest is not None
    assert (newest.key.step, newest.key.series.attempt, newest.summary) == (90, 1, b"merged")
    assert steps.extent(db, run_id) == steps.StepRange(SeriesKey(run_id, "train", 3, "rollout", 0), 0, 90, 10)


def test_the_headline_is_rollout_or_else_the_first_update(db: Database, run_id: str, close: Close) -> None:
    assert _read(db, run_id).series.phase == "rollout"
    close([0, 1], value=lambda _step: {"kl_k3": 2.0}, phase="update", update_index=1)
    assert _read(db, run_id).steps_K.tolist() == []
    close([0, 1], value=lambda _step: {"kl_k3": 3.0}, phase="update")
    table = _read(db, run_id)
    assert (table.series.phase, table.series.update_index) == ("update", 0)
    assert table.columns["kl_k3"].tolist() == [3.0, 3.0]
    assert _read(db, run_id, phase="update", update_index=1).columns["kl_k3"].tolist() == [2.0, 2.0]
    close([1], value=lambda _step: {"kl_k3": 4.0})
    assert _read(db, run_id).columns["kl_k3"].tolist() == [4.0]
    record = steps.get(db, run_id, step=0, phase="update")
    assert record is not None
    assert record.metrics == {"kl_k3": 3.0}
    assert steps.extent(db, run_id, stream="eval") is None
    assert steps.latest(db, run_id, stream="eval") is None


def test_a_range_of_steps(db: Database, run_id: str, close: Close) -> None:
    numbers = np.arange(0, 300, 5)
    close(numbers.tolist(), value=_kl)
    for first, last in ((10, 20), (None, 3), (298, None), (255, 260), (250, 251), (None, None)):
        table = _read(db, run_id, from_step=first, to_step=last)
        expected = numbers[(numbers >= (first or 0)) & (numbers <= (300 if last is None else last))]
        assert_array_equal(table.steps_K, expected)
        assert_array_equal(table.columns["kl_k3"], expected / 7)


def test_scalars_stand_beside_metrics(db: Database, run_id: str, close: Close) -> None:
    close([0, 2], value=_kl)
    close([2, 3], value=_kl, attempt=2)
    for attempt, numbers in ((1, (0, 1, 2, 3)), (2, (2,))):
        values = [Scalar("reward", step, 10.0 * attempt + step) for step in numbers]
        scalars.put(db, run_id, stream="train", attempt=attempt, values=values, now=1.0)
    table = _read(db, run_id, "reward", "kl_k3", "unknown")
    assert table.steps_K.tolist() == [0, 1, 2, 3]
    assert table.attempts_K.tolist() == [1, 1, 2, 2]
    assert_array_equal(table.columns["reward"], [10.0, 11.0, 22.0, np.nan])
    assert_array_equal(table.columns["kl_k3"], [0.0, np.nan, 2 / 7, 3 / 7])
    assert np.isnan(table.columns["unknown"]).all()
    assert list(table.columns) == ["reward", "kl_k3", "unknown"]
    only = _read(db, run_id, "reward", from_step=1, to_step=2)
    assert only.columns["reward"].tolist() == [11.0, 22.0]


def test_downsampling_keeps_extremes_and_ends() -> None:
    generator = np.random.default_rng(0)
    value_K = generator.normal(size=10_000)
    value_K[[1234, 8765]] = [50.0, -50.0]
    other_K = np.full(10_000, np.nan)
    other_K[777] = 1.0
    table = SeriesTable(
        series=SeriesKey("r", "train", 1, "rollout", 0),
        steps_K=np.arange(10_000),
        attempts_K=np.ones(10_000, np.int64),
        columns={"a": value_K, "b": other_K, "none": np.full(10_000, np.nan)},
    )
    small = series.downsample(table, max_points=200)
    assert 100 <= len(small.steps_K) <= 200
    assert (np.diff(small.steps_K) > 0).all()
    assert {0, 777, 1234, 8765, 9999} <= set(small.steps_K.tolist())
    assert_array_equal(small.columns["a"], value_K[small.steps_K])
    assert np.isnan(small.columns["none"]).all()
    assert series.downsample(table, max_points=10_000) is table
    for points in (1, 2, 3, 7):
        assert 1 <= len(series.downsample(table, max_points=points).steps_K) <= points
