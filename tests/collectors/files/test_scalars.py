from __future__ import annotations

import math
import threading

from tailwatch_collectors.files import scalars
from tailwatch_collectors.files.scalars import Point, PointProblem
from tailwatch_collectors.files.service import Service
from tailwatch_collectors.settings import Settings
from tests.collectors.conftest import FakeService
from tests.collectors.files.fixtures import Told


def test_the_last_of_equal_points_counts_and_problems_are_said_a_few_times() -> None:
    told = Told()
    points = [Point(1, "a", 1.0), Point(0, "a", 2.0), Point(1, "a", 3.0)]

    assert scalars.gather([*points, *[PointProblem("no")] * 9], tell=told) == ({1: {"a": 3.0}, 0: {"a": 2.0}}, 9)
    assert told == ["no"] * 5


def test_steps_are_posted_in_order_without_gaps_and_long_names(service: FakeService) -> None:
    settings = Settings.read({}, url=service.url, project="p", run="r", rank=0, world_size=1)
    way = Service(settings, stop=threading.Event(), tell=Told())
    way.open(session=None)
    many = {f"m{i}": float(i) for i in range(scalars.POST_NAMES + 1)}

    done = scalars.post({7: {"a": math.nan, "b": 1.0, "x" * 129: 1.0}, 2: many}, service=way)
    way.close()

    calls = [call.json for call in service.of("scalars")]
    assert [call["step"] for call in calls] == [2, 2, 7]
    assert calls[0]["values"] | calls[1]["values"] == many
    assert calls[2]["values"] == {"b": 1.0}
    assert (done.points, done.steps, done.missing, done.lost) == (len(many) + 1, 2, 1, 0)
    assert done.ignored == {"x" * 129: "its name is 129 characters long, limit 128"}
    assert "session" not in calls[0]


def test_what_the_service_leaves_out_is_named(service: FakeService) -> None:
    settings = Settings.read({}, url=service.url, project="p", run="r", rank=0, world_size=1)
    way = Service(settings, stop=threading.Event(), tell=Told())
    way.open(session="s")
    service.script("scalars", body=b'{"stored": 1, "ignored": ["kl_k3"]}')
    service.script("scalars", status=422, body=b'{"detail": "too many series"}')

    done = scalars.post({1: {"kl_k3": 1.0, "a": 2.0}, 2: {"b": 1.0}}, service=way)
    way.close()

    assert (done.points, done.lost) == (1, 1)
    assert done.ignored == {
        "kl_k3": "it is the name of a metric that the service computes",
        "b": "HTTP 422 'too many series'",
    }
