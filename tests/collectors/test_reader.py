"""The read client against a real service: names, tables, refusals."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors import ConfigurationError, ReadError
from tailwatch_collectors.mode import Mode
from tests.service.served import Served, serve

if TYPE_CHECKING:
    from tailwatch_collectors.reader import RunReader
    from tests.collectors.conftest import FakeService

RNG = np.random.default_rng(5)
STEPS = 6
MODES: tuple[Mode, ...] = ("tokens", "edge")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with one run of a few steps, and its name in another project."""
    with serve(tmp_path_factory.mktemp("data")) as served:
        with tailwatch.connect(
            project="math", run="grpo-7b", url=served.url, session="s", world_size=1, spool_dir="off"
        ) as collector:
            for step in range(STEPS):
                infer = -RNG.exponential(1.0, (4, 100)).astype(np.float32)
                train = np.minimum(infer + RNG.normal(0, 0.05, infer.shape), 0)
                collector.record(step=step, infer_logprobs=infer, train_logprobs=train, seq_id=["a", "b", "c", "d"])
                collector.scalars(step=step, values={"reward": step / 10})
            collector.event("checkpoint", step=1)
            assert collector.flush(30)
        for project in ("math", "code"):
            with tailwatch.connect(project=project, run="twice", url=served.url, spool_dir="off") as other:
                other.event("checkpoint")
                assert other.flush(30)
        _closed(tailwatch.read(served.url).run("grpo-7b"), STEPS - 1)
        yield served


def _closed(run: RunReader, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ReadError):  # not there yet
            if run.step(step)["closed"]:
                return
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not close")


def test_runs_are_a_table(served: Served) -> None:
    reader = tailwatch.read(served.url)
    table = reader.runs(project="math")
    assert isinstance(table, pa.Table)
    assert sorted(zip(table["project"].to_pylist(), table["name"].to_pylist(), strict=True)) == [
        ("math", "grpo-7b"),
        ("math", "twice"),
    ]
    assert reader.runs(project="code").num_rows == 1


def test_series_are_arrow(served: Served) -> None:
    run = tailwatch.read(served.url).run("grpo-7b")
    table = run.series(["kl_k3", "reward"])

    assert table.column_names == ["step", "attempt", "kl_k3", "reward"]
    assert table["step"].to_pylist() == list(range(STEPS))
    assert table["reward"].to_pylist() == pytest.approx([step / 10 for step in range(STEPS)])
    assert all(value > 0 for value in table["kl_k3"].to_pylist())
    assert run.series(["kl_k3"], from_step=2, to_step=3)["step"].to_pylist() == [2, 3]
    assert run.series(max_points=2).num_rows < STEPS
    assert run.series(["kl_k3"], stream="eval").num_rows == 0


def test_one_step_its_tokens_and_the_events(served: Served) -> None:
    run = tailwatch.read(served.url).run("grpo-7b", project="math")
    step = run.step(2)
    tokens = run.tokens(2)

    assert step["closed"]
    assert step["metrics"]["kl_k3"] == pytest.approx(run.series(["kl_k3"])["kl_k3"][2].as_py())
    assert {"log_ratio", "infer_logprob", "train_logprob", "position", "seq_id"} <= set(tokens.column_names)
    assert set(tokens["seq_id"].to_pylist()) <= {"a", "b", "c", "d"}
    kinds = [event["kind"] for event in run.events()]
    assert {"checkpoint", "finished"} <= set(kinds)
    assert run.events(after=run.events()[-1]["seq"]) == []
    assert "reward" in run.describe()["scalars"]


def test_the_edge_gives_the_same_numbers_as_the_tokens(served: Served) -> None:
    infer = -RNG.exponential(1.0, (4, 100)).astype(np.float32)
    train = np.minimum(infer + RNG.normal(0, 0.05, infer.shape), 0).astype(np.float32)
    for mode in MODES:
        with tailwatch.connect(
            project="modes", run=mode, url=served.url, session="s é", world_size=1, spool_dir="off", mode=mode
        ) as collector:
            for part in range(2):
                collector.record(step=0, infer_logprobs=infer + part, train_logprobs=train + part, final=part == 1)
            assert collector.flush(30)
            assert collector.stats.rejected == 0
    found = []
    for mode in MODES:
        run = tailwatch.read(served.url).run(mode)
        _closed(run, 0)
        found.append(run.series(["kl_k3", "ratio_mean"]).to_pydict())

    # The trainer summarises in numpy, the service in compiled code: equal to rounding.
    assert found[0]["step"] == found[1]["step"] == [0]
    for name in ("kl_k3", "ratio_mean"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-12)


def test_names_that_are_not_one_run(served: Served) -> None:
    reader = tailwatch.read(served.url)
    with pytest.raises(ReadError, match="no run is called 'nothing'") as caught:
        reader.run("nothing")
    assert caught.value.status == 404
    with pytest.raises(ReadError, match="'code', 'math'"):
        reader.run("twice")

    found = reader.run("twice", project="code")
    assert found.project == "code"
    assert reader.run(found.run_id).run_id == found.run_id


def test_refusals_carry_the_services_reasons(served: Served) -> None:
    run = tailwatch.read(served.url).run("grpo-7b")
    with pytest.raises(ReadError, match="kl_k3") as caught:
        run.series(["kl_k33"])
    assert caught.value.status == 422
    with pytest.raises(ReadError, match="404"):
        run.step(999)


def test_the_key_comes_from_the_environment(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="TAILWATCH_URL"):
        tailwatch.read()
    monkeypatch.setenv("TAILWATCH_URL", f"{service.url}/")
    monkeypatch.setenv("TAILWATCH_API_KEY", "secret")
    reader = tailwatch.read()

    assert reader._client.headers["authorization"] == "Bearer secret"
    with pytest.raises(ReadError, match="HTTP 501"):  # the fake knows no GET
        reader.runs()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReadError, match="ConnectError"):
        tailwatch.read("http://127.0.0.1:9", timeout=5).runs()
    with pytest.raises(ConfigurationError, match="gopher"):
        tailwatch.read("gopher://x")
