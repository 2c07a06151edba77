from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_collectors import wire
from tailwatch_service.storage.series import downsample
from tailwatch_service.types import SeriesKey, SeriesTable
from tests.service.support import API, Start, problem


@pytest.mark.asyncio
async def test_series_are_indexed_by_step(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        for step in (2, 3, 7):
            await live.send(run, step=step, seed=step)
        await live.closed(run, 7)
        await live.client.post(f"{API}/runs/{run}/scalars", json={"step": 3, "values": {"reward": 0.5}})
        url = f"{API}/runs/{run}/series"

        both = (await live.client.get(url, params={"metrics": "kl_k3, reward"})).json()
        default = (await live.client.get(url)).json()
        cut = (await live.client.get(url, params={"metrics": "kl_k3", "from_step": 3, "to_step": 6})).json()

        assert both["steps"] == [2, 3, 7]
        assert both["attempts"] == [1, 1, 1]
        assert both["phase"] == "rollout"
        assert both["metrics"]["reward"] == [None, 0.5, None]
        assert all(value > 0 for value in both["metrics"]["kl_k3"])
        assert set(default["metrics"]) >= {"kl_k3", "ess_token"}
        assert cut["steps"] == [3]


@pytest.mark.asyncio
async def test_scalars_beyond_the_steps_keep_everything_aligned(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=1)
        await live.closed(run, 1)
        for step in range(6):
            await live.client.post(f"{API}/runs/{run}/scalars", json={"step": step, "values": {"reward": step}})
        url = f"{API}/runs/{run}/series"

        table = (await live.client.get(url, params={"metrics": "kl_k3,reward", "max_points": 5})).json()

        columns = [table["attempts"], *table["metrics"].values()]
        assert {len(column) for column in columns} == {len(table["steps"])}
        one = (await live.client.get(url, params={"metrics": "kl_k3,reward", "attempt": 1})).json()
        assert {len(column) for column in one["metrics"].values()} == {len(one["steps"])}


@pytest.mark.asyncio
async def test_an_attempt_ends_where_a_later_one_begins(start: Start) -> None:
    async with start() as live:
        run = await live.run(session="a")
        for step in range(4):
            await live.send(run, step=step, session="a")
        await live.closed(run, 3)
        for step in range(2, 4):
            await live.send(run, step=step, session="b", seed=9)
        await live.closed(run, 3)
        url = f"{API}/runs/{run}/series"

        for _ in range(200):
            shown = (await live.client.get(url, params={"metrics": "kl_k3"})).json()
            if shown["attempts"] == [1, 1, 2, 2]:
                break
        first = (await live.client.get(url, params={"metrics": "kl_k3", "attempt": 1})).json()

        assert shown["steps"] == [0, 1, 2, 3]
        assert shown["attempts"] == [1, 1, 2, 2]
        assert first["steps"] == [0, 1]


@pytest.mark.asyncio
async def test_arrow_where_it_is_asked_for(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        await live.send(run, step=5)
        await live.closed(run, 5)

        answer = await live.client.get(
            f"{API}/runs/{run}/series",
            params={"metrics": "kl_k3,entropy_gap"},
            headers={"Accept": wire.CONTENT_TYPE},
        )

        table = pa.ipc.open_stream(answer.content).read_all()
        assert table.column_names == ["step", "attempt", "kl_k3", "entropy_gap"]
        assert table["step"].to_pylist() == [5]
        assert table["entropy_gap"].to_pylist() == [None]
        assert table.schema.metadata[b"run_id"] == run.encode()


@pytest.mark.asyncio
async def test_unknown_metrics_name_what_is_close(start: Start) -> None:
    async with start() as live:
        run = await live.run()
        url = f"{API}/runs/{run}/series"

        found = problem(await live.client.get(url, params={"metrics": "kl_k33,nonsense_zzz"}), 422, "kl_k3")
        assert len(found["errors"]) == 2
        problem(await live.client.get(url, params={"metrics": ","}), 422, "0 names")
        problem(await live.client.get(url, params={"metrics": ",".join(f"m{i}" for i in range(65))}), 422, "64")
        problem(await live.client.get(url, params={"from_step": -1}), 422, "from_step", "-1")
        problem(await live.client.get(url, params={"max_points": 1}), 422, "max_points")
        problem(await live.client.get(url, params={"phase": "dream"}), 422, "phase", "dream")
        problem(await live.client.get(f"{API}/runs/nowhere/series"), 404, "nowhere")


def _table(columns: dict[str, list[float]]) -> SeriesTable:
    K = len(next(iter(columns.values())))
    return SeriesTable(
        series=SeriesKey("r", "train", 1, "rollout", 0),
        steps_K=np.arange(K, dtype=np.int64) * 3,
        attempts_K=np.ones(K, np.int64),
        columns={name: np.array(values, np.float64) for name, values in columns.items()},
    )


@st.composite
def tables(draw: st.DrawFn) -> SeriesTable:
    K = draw(st.integers(1, 300))
    value = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")))
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    return _table({name: draw(st.lists(value, min_size=K, max_size=K)) for name in names})


@given(table=tables(), max_points=st.integers(2, 400))
def test_downsampling_is_a_bounded_selection_in_order(table: SeriesTable, max_points: int) -> None:
    thin = downsample(table, max_points=max_points)

    K = len(thin.steps_K)
    assert max(max_points, 1) >= K
    assert (np.diff(thin.steps_K) > 0).all()
    rows = np.searchsorted(table.steps_K, thin.steps_K)
    for name, column_K in thin.columns.items():
        np.testing.assert_array_equal(column_K, table.columns[name][rows])
    assert thin.steps_K[0] == table.steps_K[0]
    assert thin.steps_K[-1] == table.steps_K[-1]


@given(table=tables(), factor=st.integers(1, 20))
def test_downsampling_keeps_the_extremes_of_every_column(table: SeriesTable, factor: int) -> None:
    thin = downsample(table, max_points=2 + 2 * len(table.columns) * factor)

    for name, column_K in table.columns.items():
        if not np.isnan(column_K).all():
            assert np.nanmax(thin.columns[name]) == np.nanmax(column_K)
            assert np.nanmin(thin.columns[name]) == np.nanmin(column_K)
