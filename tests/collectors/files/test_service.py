from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.files import service as services
from tailwatch_collectors.files.service import Service, Stopped
from tailwatch_collectors.settings import Settings
from tailwatch_collectors.types import BatchMeta
from tests.collectors.conftest import FakeService
from tests.collectors.files.fixtures import Told

BATCH = Batch.from_arrays(
    BatchMeta(step=1), infer_logprobs=[np.zeros(2, np.float32)], train_logprobs=[np.zeros(2, np.float32)]
)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(services, "LAST_WAIT", 0.002)


Make = Callable[..., Service]


@pytest.fixture
def make(service: FakeService) -> Iterator[Make]:
    """Ways to the fake service, closed at the end."""
    made: list[Service] = []

    def one(told: Told | None = None, stop: threading.Event | None = None) -> Service:
        settings = Settings.read({}, url=service.url, project="p", run="r", framework="f", rank=0, world_size=1)
        made.append(Service(settings, stop=stop or threading.Event(), tell=Told() if told is None else told))
        return made[-1]

    yield one
    for way in made:
        way.close()


def test_the_run_is_made_with_what_is_known_of_it(service: FakeService, make: Make) -> None:
    make().open(session="s")

    assert service.of("runs")[0].json == {
        "project": "p",
        "name": "r",
        "session": "s",
        "framework": "f",
        "world_size": 1,
    }


@pytest.mark.parametrize("status", [401, 403, 404, 422, 302])
def test_a_run_that_is_not_taken_is_said_at_once(service: FakeService, make: Make, status: int) -> None:
    service.always("runs", status=status, body=b'{"detail": "why"}')

    with pytest.raises(ConfigurationError, match=f"does not take the run: HTTP {status} 'why'"):
        make().open(session=None)


def test_a_service_that_fails_is_asked_until_it_answers(service: FakeService, make: Make) -> None:
    told = Told()
    one = make(told)
    one.open(session="s")
    service.script("batches", times=2, status=500)
    service.script("batches", status=429, headers={"Retry-After": "0"})
    service.script("batches", status=401, body=b"{}")
    service.script("batches", lose_answer=True)

    assert one.batch(BATCH).status == "duplicate"
    assert len(service.of("batches")) == 6
    assert len(told) == 1
    assert told[0].startswith("sending part 0 of step 1: HTTP 500")


def test_a_refusal_says_why(service: FakeService, make: Make) -> None:
    one = make()
    one.open(session="s")
    service.script("batches", status=422, body=b'{"errors": [{"row": 3}]}')

    outcome = one.batch(BATCH)

    assert (outcome.status, outcome.reason) == ("refused", "HTTP 422 [{'row': 3}]")


def test_an_answer_that_acknowledges_nothing_is_a_refusal(service: FakeService, make: Make) -> None:
    one = make()
    one.open(session="s")
    service.script("batches", body=b'{"welcome": "to nginx"}')

    assert one.batch(BATCH).status == "refused"


def test_a_deleted_run_is_made_anew_once(service: FakeService, make: Make) -> None:
    one = make()
    one.open(session="s")
    service.script("batches", status=404)

    assert one.batch(BATCH).status == "stored"
    service.script("batches", times=2, status=404)
    assert one.batch(BATCH).status == "refused"
    assert [call.path for call in service.of("batches")][0:2] == [
        "/api/v1/runs/run-1/batches",
        "/api/v1/runs/run-2/batches",
    ]


def test_stopping_ends_the_asking(service: FakeService, make: Make) -> None:
    stop = threading.Event()
    one = make(stop=stop)
    one.open(session="s")
    service.always("batches", status=500)
    threading.Timer(0.05, stop.set).start()

    with pytest.raises(Stopped):
        one.batch(BATCH)
