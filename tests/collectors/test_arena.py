"""The arena: memory is used again, classes waste little, and what is kept is bounded."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_collectors.arena import Arena, _class_of


def test_what_is_given_back_is_used_again() -> None:
    arena = Arena(keep=10**6)
    first = arena.take(100_000)
    other = arena.take(100_000)
    assert first is not other
    arena.give(first)

    assert arena.take(100_001) is first
    assert arena.nbytes == 0


@given(st.integers(0, 2**40))
def test_a_class_is_large_enough_and_an_eighth_too_large_at_most(nbytes: int) -> None:
    size = _class_of(nbytes)

    assert size >= nbytes
    assert size == 256 or size <= nbytes * 1.125 + 16


def test_what_is_kept_is_bounded() -> None:
    arena = Arena(keep=1000)
    buffers = [arena.take(256) for _ in range(10)]
    for buffer in buffers:
        arena.give(buffer)

    assert arena.nbytes == 768


@pytest.mark.parametrize("threads", [8])
def test_no_buffer_is_given_to_two(threads: int) -> None:
    arena = Arena(keep=10**7)
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(300):
            buffer = arena.take(512)
            buffer[:] = mark
            if not (buffer == mark).all():
                wrong.append(mark)
            arena.give(buffer)

    workers = [threading.Thread(target=work, args=(mark,)) for mark in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert wrong == []
