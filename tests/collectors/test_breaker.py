"""The breaker: how long to wait, and when the service counts as away."""

from __future__ import annotations

import random

import pytest

from tailwatch_collectors import breaker
from tailwatch_collectors.breaker import Breaker


def test_waits_grow_and_are_bounded() -> None:
    for failures in range(1, 60):
        waits = []
        for _ in range(40):
            one = Breaker()
            for _ in range(failures):
                wait = one.failed()
            waits.append(wait)
        assert max(waits) <= min(breaker.LAST_BACKOFF, breaker.FIRST_BACKOFF * 2 ** (failures - 1))
        assert len(set(waits)) > 30  # jitter: ranks do not come back all at once


def test_it_opens_after_a_few_failures_in_a_row_and_closes_at_the_first_answer() -> None:
    one = Breaker()
    for _ in range(breaker.OPENS_AFTER - 1):
        one.failed()
        assert not one.open
    one.failed()
    one.failed()
    assert one.open
    assert one.opened == 1
    one.succeeded()
    assert (one.open, one.failures) == (False, 0)
    one.failed()
    assert not one.open


def test_a_service_that_asks_to_be_left_alone_is_away_at_once() -> None:
    one = Breaker()

    assert one.failed(retry_after=20.0) == 20.0
    assert one.open
    assert one.failed(retry_after=1e9) == breaker.MAX_RETRY_AFTER
    one.succeeded()
    assert one.failed(retry_after=0.0) == 0.0
    assert not one.open


def test_slowly_waits_longest_and_closing_shortest() -> None:
    assert Breaker().failed(slowly=True) == breaker.LAST_BACKOFF
    one = Breaker()
    waits = [one.failed(closing=True) for _ in range(30)]

    assert max(waits) <= breaker.CLOSING_BACKOFF


@pytest.mark.parametrize("seed", range(3))
def test_the_trainers_random_numbers_are_its_own(seed: int) -> None:
    random.seed(seed)
    expected = random.random()
    random.seed(seed)
    Breaker().failed()

    assert random.random() == expected
