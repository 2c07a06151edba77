"""The outbox and its couriers: once, in order, in spite of restarts and of receivers that misbehave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tailwatch_service.alerts import messages
from tailwatch_service.alerts.courier import GIVE_UP_S, LEASE_S, Courier, Destination, backoff_s, destinations
from tailwatch_service.alerts.links import Links
from tailwatch_service.settings import Settings
from tailwatch_service.storage import outbox
from tailwatch_service.storage.database import Database
from tests.service.alerts.receivers import Answer, flaky, hang, megabytes, receiver, status
from tests.service.support import API, Start, make_batch


class Office:
    """A database, a clock that stands still, and couriers that are driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.db = Database.open(None, data_dir=folder)
        self.settings = Settings(data_dir=folder, alerts_allow_private=True, alerts_timeout_s=0.5)
        self.now = 1000.0
        self.counted: list[str] = []

    def courier(self, url: str) -> Courier:
        return Courier(
            self.db,
            Destination(name="webhook", url=url),
            settings=self.settings,
            clock=lambda: self.now,
            chance=lambda: 1.0,
            count=lambda _name, outcome: self.counted.append(outcome),
        )

    def queue(self, name: str = "one", *, to: str = "webhook") -> str:
        sent = messages.sample(Links(self.settings), project=name, by="me", now=self.now)
        with self.db.write() as connection:
            (made,) = outbox.insert(
                connection, destinations=(to,), notice="test", payload=sent, now=self.now, alert_id=None
            )
        return made

    def state(self, delivery_id: str) -> outbox.Delivery:
        (found,) = outbox.get(self.db, [delivery_id])
        return found


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.db.close()


def projects(bodies: list[Any]) -> list[str]:
    return [body["commonLabels"]["project"] for body in bodies]


def test_what_is_queued_is_sent_once_and_in_order(office: Office) -> None:
    ids = [office.queue(name) for name in ("a", "b", "c")]
    with receiver() as got:
        courier = office.courier(got.url)
        while courier.deliver_next():
            pass
    assert projects(got.bodies) == ["a", "b", "c"]
    assert got.ids == ids
    assert {office.state(one).state for one in ids} == {"sent"}


def test_a_failure_is_tried_again_later_each_time_under_the_same_id(office: Office) -> None:
    made = office.queue()
    with receiver(flaky(500, times=3)) as got:
        courier = office.courier(got.url)
        waits = []
        while office.state(made).state != "sent":
            assert courier.deliver_next()
            waits.append(office.state(made).next_at - office.now)
            assert office.state(made).state == "sent" or not courier.deliver_next()
            office.now += waits[-1]
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert got.ids == [made] * 4
    assert office.state(made).attempts == 4
    assert office.counted == ["retried"] * 3 + ["sent"]


@pytest.mark.parametrize("answer", [hang, status(500), status(307, location="http://169.254.169.254/")])
def test_receivers_that_misbehave_cost_a_bounded_time(office: Office, answer: Answer) -> None:
    made = office.queue()
    with receiver(answer) as got:
        started = time.monotonic()
        office.courier(got.url).deliver_next()
        assert time.monotonic() - started < 5.0
    assert office.state(made).state in {"pending", "failed"}
    assert office.state(made).last_error


def test_megabytes_in_answer_are_an_answer(office: Office) -> None:
    made = office.queue()
    with receiver(megabytes) as got:
        office.courier(got.url).deliver_next()
    assert office.state(made).state == "sent"


def test_what_cannot_arrive_is_given_up_at_once_and_what_might_after_a_day(office: Office) -> None:
    refused = office.queue()
    with receiver(status(410)) as got:
        office.courier(got.url).deliver_next()
    assert office.state(refused).state == "failed"
    assert "410" in str(office.state(refused).last_error)
    late = office.queue()
    office.now += GIVE_UP_S + 1
    with receiver(status(503)) as got:
        office.courier(got.url).deliver_next()
    assert office.state(late).state == "failed"
    assert office.counted == ["failed", "failed"]


def test_a_restart_sends_nothing_twice(office: Office) -> None:
    """What was sent stays sent; what was in flight when the process died goes out again under its id, later."""
    sent, in_flight, waiting = office.queue("sent"), office.queue("in flight"), office.queue("waiting")
    with receiver() as got:
        assert office.courier(got.url).deliver_next()
        claimed = outbox.claim(office.db, "webhook", now=office.now, lease_s=LEASE_S)
        assert claimed is not None
        assert claimed.delivery_id == in_flight

        after = office.courier(got.url)
        while after.deliver_next():
            pass
        assert projects(got.bodies) == ["sent", "waiting"]
        office.now += LEASE_S
        while after.deliver_next():
            pass
    assert got.ids == [sent, waiting, in_flight]


def test_an_alerts_end_never_overtakes_its_beginning(tmp_path: Path) -> None:
    from tests.service.alerts.test_judging import World

    world = World(tmp_path)
    world.spike()
    for step in range(27, 32):
        world.send(step)
    first = outbox.claim(world.db, "webhook", now=world.now, lease_s=LEASE_S)
    assert first is not None
    outbox.retry(world.db, first.delivery_id, at=world.now + 60.0, error="500")
    assert outbox.claim(world.db, "webhook", now=world.now, lease_s=LEASE_S) is None
    again = outbox.claim(world.db, "webhook", now=world.now + 61.0, lease_s=LEASE_S)
    assert again is not None
    assert (again.notice, again.attempts) == ("firing", 2)
    outbox.sent(world.db, again.delivery_id, now=world.now)
    last = outbox.claim(world.db, "webhook", now=world.now, lease_s=LEASE_S)
    assert last is not None
    assert last.notice == "resolved"
    world.db.close()


def test_two_couriers_never_claim_the_same(office: Office) -> None:
    for _ in range(20):
        office.queue()
    claimed: list[str] = []

    def take() -> None:
        while (found := outbox.claim(office.db, "webhook", now=office.now, lease_s=LEASE_S)) is not None:
            claimed.append(found.delivery_id)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert len(claimed) == len(set(claimed)) == 20


def test_a_thread_delivers_and_stops(office: Office) -> None:
    with receiver() as got:
        courier = office.courier(got.url)
        courier.start()
        made = office.queue()
        courier.wake()
        got.wait(1)
        courier.close()
    assert office.state(made).state == "sent"


def test_waits_grow_to_five_minutes_and_leave_half_to_chance() -> None:
    assert [backoff_s(n, chance=1.0) for n in (1, 2, 5, 50)] == [1.0, 2.0, 16.0, 300.0]
    assert backoff_s(5, chance=0.0) == 8.0


def test_destinations_are_those_configured(tmp_path: Path) -> None:
    assert destinations(Settings()) == []
    both = Settings(alert_webhook_url="http://a/hook", alertmanager_url="http://b:9093/")
    assert [one.url for one in destinations(both)] == ["http://a/hook", "http://b:9093/api/v2/alerts"]


@pytest.mark.asyncio
async def test_a_receiver_that_hangs_holds_up_no_batch(start: Start) -> None:
    release = threading.Event()

    def hold(handler: Any, number: int) -> None:
        release.wait(30.0)
        status(200)(handler, number)

    with receiver(hold) as got:
        where = {"alert_webhook_url": got.url, "alerts_allow_private": True, "alerts_timeout_s": 60.0}
        async with start(**where) as live:
            run = await live.run()
            await live.send(run, make_batch(step=0))  # its clamped log-probs fire LogprobInvalid
            await live.closed(run, 0)
            await asyncio.to_thread(got.wait, 1)
            for step in range(1, 6):
                assert (await live.send(run, make_batch(step=step, seed=step))).status_code == 201
                await live.closed(run, step)
            (alert,) = (await live.client.get(f"{API}/runs/{run}/alerts")).json()["alerts"][-1:]
            found = (await live.client.get(f"{API}/alerts/{alert['alert_id']}")).json()
            assert [one["state"] for one in found["deliveries"]] == ["in_flight"]
            release.set()
