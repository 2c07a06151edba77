from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tailwatch_collectors.adapters.wrapping import wrap
from tests.collectors.adapters.handmade import Recorder


class Owner:
    def add(self, first: int, second: int = 10) -> int:
        return first + second

    async def later(self, value: int) -> int:
        return value + 1

    def fails(self) -> None:
        raise KeyError("its own")


def test_a_call_is_seen_with_named_arguments_and_passes_untouched() -> None:
    owner, seen = Owner(), []
    undo = wrap(
        owner,
        "add",
        guard=Recorder().guard,
        before=dict,
        after=lambda result, before, arguments: seen.append((result, before, dict(arguments))),
    )

    assert owner.add(1, second=2) == 3
    assert seen == [(3, {"first": 1, "second": 2}, {"first": 1, "second": 2})]
    undo()
    assert owner.add(1) == 11
    assert len(seen) == 1
    assert vars(owner) == {}


def test_a_coroutine_is_awaited() -> None:
    owner, seen = Owner(), []
    wrap(owner, "later", guard=Recorder().guard, after=lambda result, *_: seen.append(result))

    assert asyncio.run(owner.later(1)) == 2
    assert seen == [2]


def test_an_error_of_ours_stays_here(swallow: None) -> None:
    owner, recorder = Owner(), Recorder()

    def fail(*_: Any) -> None:
        raise ValueError("ours")

    wrap(owner, "add", guard=recorder.guard, before=fail, after=fail)

    assert owner.add(1, 2) == 3
    assert recorder.errors == 2


def test_wrong_arguments_fail_as_they_did_before(swallow: None) -> None:
    owner = Owner()
    wrap(owner, "add", guard=Recorder().guard, before=lambda arguments: None)

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        owner.add()  # type: ignore[call-arg]


def test_an_error_of_theirs_passes() -> None:
    owner, seen = Owner(), []
    wrap(owner, "fails", guard=Recorder().guard, after=lambda *_: seen.append(1))

    with pytest.raises(KeyError, match="its own"):
        owner.fails()
    assert seen == []


def test_a_missing_function_is_said_at_once() -> None:
    with pytest.raises(AttributeError):
        wrap(Owner(), "gone", guard=Recorder().guard)
