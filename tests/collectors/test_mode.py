"""The mode: what `auto` takes for a way that keeps up, and that it finds back."""

from __future__ import annotations

import itertools

import pytest

from tailwatch_collectors.mode import PROBE_EVERY, Chooser, Mode

MB = 2**20


class Auto(Chooser):
    """One with a clock."""

    def __init__(self) -> None:
        super().__init__("auto")
        self.now = 0.0


def _forms(chooser: Auto, count: int, *, every: float, fill: float = 0.0, away: bool = False) -> list[str]:
    forms: list[str] = []
    for _ in range(count):
        chooser.now += every
        forms.append(chooser.form(MB, now=chooser.now, fill=fill, away=away))
    return forms


@pytest.fixture
def auto() -> Auto:
    """One that has seen 10 MB/s."""
    chooser = Auto()
    for _ in range(30):
        chooser.sent(MB, 0.1)
    return chooser


def test_what_is_asked_for_stays() -> None:
    modes: tuple[Mode, ...] = ("tokens", "edge")
    for mode in modes:
        assert Chooser(mode).form(MB, now=0.0, fill=1.0, away=True) == mode


def test_tokens_as_long_as_the_network_keeps_up(auto: Auto) -> None:
    assert set(_forms(auto, 50, every=1.0)) == {"tokens"}


def test_a_network_that_does_not_keep_up(auto: Auto) -> None:
    forms = _forms(auto, 200, every=0.05)  # 20 MB/s

    assert forms[-1] == "edge"
    assert forms[100:].count("tokens") <= 100 // PROBE_EVERY + 1
    assert "tokens" in forms[100:]  # to measure it anew
    assert _forms(auto, 60, every=2.0)[-1] == "tokens"


def test_it_does_not_swing(auto: Auto) -> None:
    _forms(auto, 100, every=0.05)
    forms = _forms(auto, 100, every=0.19)  # between idle and busy

    assert sum(one != other for one, other in itertools.pairwise(forms[30:])) <= 2 * (70 // PROBE_EVERY + 1)
    assert forms.count("edge") > 90


@pytest.mark.parametrize(("fill", "away"), [(0.6, False), (0.0, True)])
def test_a_backlog_and_an_outage(auto: Auto, fill: float, away: bool) -> None:
    assert _forms(auto, 1, every=1.0, fill=fill, away=away) == ["edge"]
    assert _forms(auto, 1, every=1.0, fill=0.4) == ["edge"]
    assert _forms(auto, 1, every=1.0, fill=0.1) == ["tokens"]


def test_small_bodies_say_nothing_about_the_network() -> None:
    chooser = Auto()
    for _ in range(100):
        chooser.sent(300, 1.0)

    assert set(_forms(chooser, 20, every=0.01)) == {"tokens"}
