"""The format of a segment: what is written is read, and damage costs what it hit and nothing else."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwatch_collectors.segment import HEADER, MARKER, Damage, Found, Record, pack, scan


def _record(seq: int, body: bytes = b"body") -> Record:
    run = {"project": "p", "name": "r", "session": "s"}
    return Record(run=run, route="batches", key={"step": seq}, seq=seq, body=body)


def _file(*bodies: bytes) -> tuple[bytes, list[int]]:
    """A segment, and where each record begins; the last one is its end."""
    data, starts = HEADER, []
    for seq, body in enumerate(bodies):
        starts.append(len(data))
        data += pack(_record(seq, body))
    return data, [*starts, len(data)]


def _seqs(data: bytes, start: int = 0) -> list[int]:
    return [found.record.seq for found in scan(data, start) if isinstance(found, Found)]


def test_what_is_written_is_read() -> None:
    data, starts = _file(b"", b"one", MARKER * 50)
    found = list(scan(data))

    assert [one.record for one in found if isinstance(one, Found)] == [
        _record(0, b""),
        _record(1, b"one"),
        _record(2, MARKER * 50),
    ]
    assert [one.end for one in found] == starts[1:]
    assert _seqs(data, starts[1]) == [1, 2]
    assert list(scan(b"")) == []
    assert list(scan(HEADER)) == []


def test_every_torn_tail_costs_the_last_record_only() -> None:
    data, starts = _file(b"first", b"second" * 20)
    for length in range(starts[1], starts[2]):
        found = list(scan(data[:length]))

        assert [one.record.seq for one in found if isinstance(one, Found)] == [0]
        assert [type(one) for one in found[1:]] == ([Damage] if length > starts[1] else [])


def test_every_flipped_byte_costs_the_record_it_is_in_only() -> None:
    data, starts = _file(b"first", b"second" * 5, b"third")
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        found = list(scan(bytes(damaged)))
        hit = {number for number in range(3) if starts[number] <= at < starts[number + 1]}

        assert [one.record.seq for one in found if isinstance(one, Found)] == sorted({0, 1, 2} - hit)
        assert sum(isinstance(one, Damage) for one in found) == 1


@pytest.mark.parametrize("cut", [1, 5, 16, 30])
def test_bytes_that_are_missing_or_too_many_lose_no_later_record(cut: int) -> None:
    data, starts = _file(b"first" * 10, b"second" * 10, b"third")
    middle = starts[1] + 20

    assert _seqs(data[:middle] + data[middle + cut :]) == [0, 2]
    assert _seqs(data[:middle] + b"x" * cut + data[middle:]) == [0, 2]


def test_a_record_inside_a_damaged_one_is_not_taken_for_its_own() -> None:
    inner = pack(_record(99, b"inside"))
    data, starts = _file(b"first", inner * 3, b"third")
    damaged = bytearray(data)
    damaged[starts[2] - 1] ^= 1

    assert _seqs(bytes(damaged)) == [0, 2]


def test_sound_bytes_that_are_no_record_of_ours_are_stepped_over() -> None:
    data, _ = _file(b"first")
    other = Record(run={}, route="batches", key={}, seq=1, body=b"")
    broken = pack(other).replace(b'"route"', b'"ruote"')
    # A checksum that fits: as another program, or a later version, would have written it.
    payload = broken[16:]
    head = struct.pack("<4sII", MARKER, len(payload), zlib.crc32(payload))
    data += head + struct.pack("<I", zlib.crc32(head)) + payload + pack(_record(2))

    assert _seqs(data) == [0, 2]


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(0, 2**32), st.binary(max_size=40))
def test_garbage_never_raises(bodies: list[bytes], seed: int, garbage: bytes) -> None:
    data, _ = _file(*bodies)
    chance = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(chance.randrange(6)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    at = chance.randrange(len(damaged) + 1)
    seqs = _seqs(bytes(damaged[:at]) + garbage + bytes(damaged[at:]))

    assert seqs == sorted(seqs)
    assert set(seqs) <= set(range(len(bodies)))
