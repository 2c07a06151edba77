"""Steps closed by hand, judged in their transaction; what time and people do between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.alerts.desk import Desk, base_rules
from tailwatch_service.alerts.lifecycle import InvalidTransition
from tailwatch_service.closing import Closer
from tailwatch_service.detection import engine
from tailwatch_service.errors import NotFound, SettingsError
from tailwatch_service.settings import Settings
from tailwatch_service.storage import alerts, batches, events, findings, rules, runs, schema, steps
from tailwatch_service.storage.alerts import Placed
from tailwatch_service.storage.database import Database
from tailwatch_service.types import BatchKey, Event, NewBatch, RunSpec, SeriesKey, StepKey


def summary(kl: float, *, seed: int = 0, tokens: int = 400, invalid: int = 0) -> summaries.Summary:
    """A step whose kl_k3 is about `kl`."""
    rng = np.random.default_rng(seed)
    infer = -1.0 - rng.exponential(1.0, tokens)
    train = infer + rng.normal(0.0, np.sqrt(2.0 * kl), tokens)
    train[:invalid] = np.nan
    return summaries.summarise(
        Batch.from_arrays(
            BatchMeta(step=0),
            infer_logprobs=infer,
            train_logprobs=np.minimum(train, -1e-6),
            cu_seqlens=np.arange(0, tokens + 1, 20),
        )
    )


class World:
    """A database, a clock that stands still, a closer and a desk that are driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.db = Database.open(None, data_dir=folder)
        self.now = 1000.0
        url = "http://receiver.example/hook"
        self.settings = Settings(data_dir=folder, alert_webhook_url=url, public_url="https://tailwatch.example")
        self.desk = Desk.open(self.db, settings=self.settings)
        self.told: list[Event] = []
        self.run_id = self.register("r")
        self.closer = self.new_closer()
        self.change({})

    def new_closer(self) -> Closer:
        return Closer(
            self.db,
            settings=self.settings,
            clock=lambda: self.now,
            on_close=self.told.append,
            judge=self.desk.judge,
            watch=self.desk.watch,
        )

    def register(self, name: str, **spec: Any) -> str:
        given = {"precision": "fp8", **spec}
        return runs.register(self.db, RunSpec(project="p", name=name, **given), now=self.now).run.run_id

    def send(self, step: int, kl: float = 1e-3, *, rank: int = 0, invalid: int = 0, **fields: Any) -> None:
        series = SeriesKey(
            fields.pop("run_id", self.run_id),
            fields.pop("stream", "train"),
            fields.pop("attempt", 1),
            fields.pop("phase", "rollout"),
            fields.pop("update_index", 0),
        )
        whole = summary(kl, seed=step + 1000 * rank, invalid=invalid)
        given: dict[str, Any] = {
            "key": BatchKey(StepKey(series, step), rank, 0),
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
        self.closer.close_series(series)
        self.now += 1.0

    def spike(self, *, healthy: int = 25, bad: int = 2) -> None:
        for step in range(healthy + bad):
            self.send(step, 1e-3 if step < healthy else 0.2)

    def alerts(self, **which: Any) -> list[Placed]:
        return alerts.listed(self.db, **which)

    def one(self) -> Placed:
        (found,) = self.alerts()
        return found

    def kinds(self) -> list[tuple[str, int | None]]:
        return [(e.kind, e.step) for e in events.after(self.db, self.run_id, seq=0) if e.kind.startswith("alert")]

    def queued(self) -> list[tuple[str, str, str]]:
        table = schema.deliveries
        with self.db.read() as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.number)).all()
        return [(row.notice, row.payload["labels"]["alertname"], row.payload["labels"]["severity"]) for row in rows]

    def change(self, changes: dict[str, Any]) -> None:
        # A spike is also a mismatch at lag 0; here it is about spikes.
        changes = {"MismatchK3High": {"enabled": False}, **changes}
        rules.put(self.db, project="p", run_id=None, changes=changes, actor="me", now=self.now)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.db.close()


def test_a_spike_fires_and_clears_with_its_step(world: World) -> None:
    world.spike()
    found = world.one()

    assert (found.project, found.run, found.alert.rule) == ("p", "r", "KlSpike")
    assert (found.alert.state, found.alert.severity, found.alert.fired_step) == ("firing", "critical", 26)
    assert found.alert.started_step == 25
    assert "KL spike in p/r, step 26: kl_k3 0.2" in found.alert.summary
    assert "Broken in 2 of the last 3 judged steps (2 fire)" in found.alert.description
    assert [step["step"] for step in found.alert.evidence["steps"]] == list(range(17, 27))
    assert found.alert.evidence["worst_tokens"]
    assert found.alert.evidence["run"]["precision"] == "fp8"
    assert world.queued() == [("firing", "KlSpike", "critical")]

    for step in range(27, 32):
        world.send(step)

    assert (world.one().alert.state, world.one().alert.resolved_step) == ("resolved", 31)
    assert world.kinds() == [("alert_firing", 26), ("alert_resolved", 31)]
    assert [notice for notice, _, _ in world.queued()] == ["firing", "resolved"]
    assert [f.finding.transition for f in findings.of_run(world.db, world.run_id)] == ["hit", "fired", "cleared"]


def test_the_event_of_the_step_comes_before_that_of_its_alert(world: World) -> None:
    world.spike()
    log = [(e.kind, e.step) for e in events.after(world.db, world.run_id, seq=0)]
    assert log.index(("step_closed", 26)) + 1 == log.index(("alert_firing", 26))


def test_one_spiking_step_is_pending_and_lapses(world: World) -> None:
    world.spike(bad=1)
    with world.db.read() as connection:
        (pending,) = alerts.open_of_run(connection, world.run_id).values()
    assert pending.state == "pending"
    assert world.alerts() == []
    for step in range(26, 29):
        world.send(step)
    with world.db.read() as connection:
        assert alerts.open_of_run(connection, world.run_id) == {}
    assert world.kinds() == []


def test_a_late_batch_marks_what_was_found_and_fires_nothing(world: World) -> None:
    world.spike(bad=0)
    world.send(25, 0.2)
    world.send(26, 1e-3)
    world.send(26, 3.0, rank=1)
    record = steps.get(world.db, world.run_id, step=26)
    assert record is not None
    assert (record.revision, record.metrics["kl_k3"] > 0.2) == (1, True)
    assert world.alerts() == []
    world.send(25, 1e-3, rank=1)
    assert [f.revised for f in findings.of_step(world.db, StepKey(record.key.series, 25))] == [True]


def test_a_late_batch_resolves_nothing(world: World) -> None:
    world.spike()
    for step in (25, 26):
        world.send(step, 1e-9, rank=1)
    assert world.one().alert.state == "firing"


def test_a_step_of_too_few_ranks_is_not_judged(world: World) -> None:
    world.spike(bad=0)
    for step in range(25, 29):
        world.send(step, 0.5, world_size=4)
    world.now += 1000.0
    world.closer.sweep(everything=True)
    record = steps.get(world.db, world.run_id, step=28)
    assert record is not None
    assert (record.closed, record.coverage) == (True, 0.25)
    assert world.alerts() == []
    assert findings.of_run(world.db, world.run_id) == []


def test_a_step_that_closes_after_its_successor_is_not_judged(world: World) -> None:
    for step in range(0, 60, 2):
        world.send(step)
    for step in (51, 53, 55):
        world.send(step, 0.5)
    assert findings.of_run(world.db, world.run_id) == []


def test_only_the_headline_series_is_judged(world: World) -> None:
    world.send(0)
    for step in range(1, 4):
        world.send(step, 5.0, phase="update")
        world.send(step, 5.0, phase="probe")
    assert world.alerts() == []
    other = world.register("updates-only")
    for step in range(1, 4):
        world.send(step, 5.0, phase="update", update_index=1, run_id=other)
    assert world.alerts() == []
    for step in range(1, 4):
        world.send(step, 5.0, phase="update", run_id=other)
    assert {one.run for one in world.alerts()} == {"updates-only"}


def test_another_stream_is_a_slice_of_its_own(world: World) -> None:
    for step in range(3):
        world.send(step, 5.0)
        world.send(step, 5.0, stream="eval")
    assert {(one.alert.rule, one.alert.slice) for one in world.alerts()} == {("KlSpike", ""), ("KlSpike", "eval")}


def test_invalid_tokens_fire_on_the_first_step(world: World) -> None:
    world.send(0, invalid=1)
    assert (world.one().alert.rule, world.one().alert.severity) == ("LogprobInvalid", "critical")


def test_a_broken_rule_leaves_the_step_unjudged_and_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a rule divides by zero")

    monkeypatch.setattr(engine, "judge", broken)
    world.send(0)
    record = steps.get(world.db, world.run_id, step=0)
    assert record is not None
    assert record.closed


def test_changes_of_a_project_and_of_a_run_count_from_the_next_step(world: World) -> None:
    world.change({"KlSpike": {"enabled": False}})
    world.spike(bad=5)
    assert world.alerts() == []
    rules.put(
        world.db, project="p", run_id=world.run_id, changes={"KlSpike": {"enabled": True}}, actor="me", now=world.now
    )
    world.send(40, 0.5)
    world.send(41, 0.5)
    assert world.one().alert.fired_step == 41


def test_switching_a_rule_off_ends_its_alerts(world: World) -> None:
    world.spike()
    world.change({"KlSpike": {"enabled": False}})
    world.send(27, 0.2)
    assert (world.one().alert.state, world.one().alert.resolved_reason) == ("resolved", "rule_disabled")


def test_a_finished_run_ends_its_alerts_and_a_resumed_one_may_fire_again(world: World) -> None:
    world.spike()
    events.append(world.db, world.run_id, kind="finished", now=world.now)
    world.closer.sweep()
    assert (world.one().alert.state, world.one().alert.resolved_reason) == ("resolved", "run_finished")
    assert [event.kind for event in world.told][-1] == "alert_resolved"
    runs.register(world.db, RunSpec(project="p", name="r"), now=world.now, resume=True)
    world.send(27, 0.2, attempt=2)
    world.send(28, 0.2, attempt=2)
    assert [one.alert.state for one in world.alerts()] == ["firing", "resolved"]


def test_silence_of_a_stream_is_judged_by_the_clock(world: World) -> None:
    world.closer.sweep()
    for step in range(5):
        world.send(step)
    world.now += 55.0
    world.closer.sweep()
    assert world.alerts() == []
    world.now += 10.0
    world.closer.sweep()
    assert (world.one().alert.rule, world.one().alert.severity) == ("StreamMissing", "warning")
    world.now += 300.0
    world.closer.sweep()
    assert (world.one().alert.state, world.one().alert.severity) == ("firing", "critical")
    world.now += 11.0
    world.closer.sweep()
    assert len(world.queued()) == 2
    world.send(5)
    world.now += 9.0
    world.closer.sweep()
    assert (world.one().alert.state, world.one().alert.resolved_reason) == ("resolved", "cleared")


def test_silence_while_the_service_was_away_is_none(world: World) -> None:
    for step in range(5):
        world.send(step)
    world.now += 5000.0
    world.closer.sweep()
    assert world.alerts() == []
    world.now += 61.0
    world.closer.sweep()
    assert (world.one().alert.rule, world.one().alert.severity) == ("StreamMissing", "warning")


def test_a_restart_neither_ends_a_silence_nor_tells_of_it_twice(world: World) -> None:
    world.closer.sweep()
    for step in range(5):
        world.send(step)
    world.now += 100.0
    world.closer.sweep()
    assert world.one().alert.state == "firing"
    queued = len(world.queued())

    world.desk = Desk.open(world.db, settings=world.settings)
    world.closer = world.new_closer()
    for _ in range(8):
        world.closer.sweep()
        world.now += 11.0

    assert world.one().alert.state == "firing"
    assert len(world.queued()) == queued
    world.send(5)
    world.now += 9.0
    world.closer.sweep()
    assert (world.one().alert.state, world.one().alert.resolved_reason) == ("resolved", "cleared")


def test_two_steps_do_not_tell_how_long_a_step_takes(world: World) -> None:
    world.closer.sweep()
    world.send(0)
    world.send(1)
    world.now += 5000.0
    world.closer.sweep()
    assert world.alerts() == []


def test_people_acknowledge_and_silence(world: World) -> None:
    world.spike()
    alert_id, watch = world.one().alert.alert_id, world.desk.watch
    event = watch.acknowledge(alert_id, by="me", now=world.now, note="looking")
    assert event is not None
    assert event.kind == "alert_acknowledged"
    assert watch.acknowledge(alert_id, by="me", now=world.now) is None
    watch.silence(alert_id, by="me", now=world.now, until=world.now + 30.0)
    assert alerts.firing(world.db) == []
    assert alerts.to_remind(world.db) == []
    world.now += 31.0
    world.closer.sweep()
    assert (world.one().alert.state, world.queued()[-1][0]) == ("firing", "firing")
    with pytest.raises(NotFound):
        watch.acknowledge("nothing", by="me", now=world.now)
    events.append(world.db, world.run_id, kind="finished", now=world.now)
    world.closer.sweep()
    with pytest.raises(InvalidTransition, match="resolved"):
        watch.silence(alert_id, by="me", now=world.now, until=world.now + 30.0)


def test_judging_goes_on_where_another_replica_left_off(world: World) -> None:
    world.spike(bad=1)
    world.desk = Desk.open(world.db, settings=world.settings)
    world.closer = world.new_closer()
    world.send(26, 0.2)
    assert world.one().alert.fired_step == 26


def test_a_deleted_run_takes_its_alerts_along(world: World) -> None:
    world.spike()
    runs.delete(world.db, world.run_id)
    assert world.alerts() == []
    assert world.queued() == []


def test_rules_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("[KlSpike]\nhits = 3\nwindow = 5\n")
    assert base_rules(path)["KlSpike"].hits == 3
    path.write_text("[KlSpike]\nhits = 9\n")
    with pytest.raises(SettingsError, match="9 of 3 steps can never be reached"):
        base_rules(path)
    path.write_text("[KlSpike\n")
    with pytest.raises(SettingsError, match="cannot read the rules file"):
        base_rules(path)
