"""What is remembered of a run, for how long, and what is never remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tailwatch_service import known_runs
from tailwatch_service.errors import NotFound, Unprocessable
from tailwatch_service.known_runs import KnownRuns
from tailwatch_service.storage import runs
from tailwatch_service.storage.database import Database
from tailwatch_service.types import RunSpec


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(None, data_dir=tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(db: Database, clock: Clock) -> KnownRuns:
    return KnownRuns(db, monotonic=clock)


def test_a_project_is_remembered_for_a_moment(db: Database, known: KnownRuns, clock: Clock) -> None:
    run_id = runs.register(db, RunSpec(project="p", name="r"), now=0.0).run.run_id
    project = known.project_of(run_id, now=0.0)
    runs.update(db, run_id, changes={"project": "another"}, now=1.0)
    assert known.project_of(run_id, now=1.0) == project == "p"
    clock.now = known_runs._REMEMBER_S
    assert known.project_of(run_id, now=1.0) == "another"


def test_what_is_not_there_is_not_remembered(db: Database, known: KnownRuns) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        known.project_of("nowhere", now=0.0)
    with pytest.raises(NotFound, match="nowhere"):
        known.attempt_of("nowhere", now=0.0, session="s", attempt=None)
    run_id = runs.register(db, RunSpec(project="p", name="r"), now=0.0, session="one").run.run_id
    with pytest.raises(Unprocessable, match="2 does not exist"):
        known.attempt_of(run_id, now=0.0, session=None, attempt=2)
    runs.register(db, RunSpec(project="p", name="r"), now=0.0, session="two")
    assert known.attempt_of(run_id, now=0.0, session=None, attempt=2) == 2


def test_an_attempt_is_remembered_by_its_launch_and_the_latest_never(db: Database, known: KnownRuns) -> None:
    spec = RunSpec(project="p", name="r")
    run_id = runs.register(db, spec, now=0.0, session="one").run.run_id
    assert known.attempt_of(run_id, now=0.0, session="one", attempt=None) == 1
    assert known.attempt_of(run_id, now=0.0, session=None, attempt=None) == 1
    assert known.attempt_of(run_id, now=0.0, session="two", attempt=None) == 2
    assert known.attempt_of(run_id, now=0.0, session=None, attempt=None) == 2
    runs.delete(db, run_id)
    assert known.attempt_of(run_id, now=0.0, session="one", attempt=None) == 1
    with pytest.raises(NotFound):
        known.attempt_of(run_id, now=0.0, session=None, attempt=None)


def test_memory_is_bounded(db: Database, known: KnownRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_runs, "_REMEMBERED", 3)
    run_id = runs.register(db, RunSpec(project="p", name="r"), now=0.0).run.run_id
    for number in range(10):
        known.attempt_of(run_id, now=0.0, session=f"launch-{number}", attempt=None)
        assert len(known._attempts) <= 3
