"""What goes wrong inside is swallowed in training and raised under pytest."""

from __future__ import annotations

import logging

import pytest

from tailwatch_collectors.guard import Guard, guarded, shown


class Thing:
    def __init__(self) -> None:
        self.errors = 0
        self.guard = Guard(on_error=self._count)

    def _count(self) -> None:
        self.errors += 1

    @guarded(default=-1)
    def divide(self, a: int, *, by: int) -> int:
        """Divide."""
        return a // by


def test_raises_under_pytest() -> None:
    thing = Thing()

    with pytest.raises(ZeroDivisionError):
        thing.divide(1, by=0)
    assert thing.errors == 1


def test_raises_without_pytest_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")

    assert Thing().divide(1, by=0) == -1


@pytest.mark.usefixtures("swallow")
def test_swallows_counts_and_logs_once_per_place_and_type(caplog: pytest.LogCaptureFixture) -> None:
    thing = Thing()

    with caplog.at_level(logging.WARNING, "tailwatch"):
        for _ in range(3):
            assert thing.divide(1, by=0) == -1
        with thing.guard("elsewhere"):
            raise ZeroDivisionError("there")
        with thing.guard("elsewhere"):
            raise KeyError("there")
    assert thing.errors == 5
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "divide",
        "elsewhere",
        "elsewhere",
    ]


def test_what_works_is_left_alone() -> None:
    thing = Thing()

    assert thing.divide(7, by=2) == 3
    assert thing.divide.__doc__ == "Divide."
    assert thing.errors == 0


@pytest.mark.usefixtures("swallow")
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass(interrupt: type[BaseException]) -> None:
    thing = Thing()

    with pytest.raises(interrupt), thing.guard("place"):
        raise interrupt
    assert thing.errors == 0


def test_shown_is_one_bounded_line() -> None:
    assert "\n" not in shown("a\nERROR forged")
    assert len(shown("x" * 10_000, limit=50)) < 60
