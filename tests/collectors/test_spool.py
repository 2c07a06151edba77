"""The spool: exact after a restart, bounded, one replayer for each shelf, and nothing that damage could break."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tailwatch_collectors.segment import Record
from tailwatch_collectors.shelf import Shelf
from tailwatch_collectors.spool import Fsync, Spool, TooLargeError

RUN = {"project": "p", "name": "r", "session": "s"}
URL = "http://127.0.0.1:8321"


def _spool(root: Path, **more: Any) -> Spool:
    arguments: dict[str, Any] = {"nbytes": 2**20, "fsync": "never", "run": RUN, "url": URL}
    return Spool(root, **(arguments | more))


def _record(seq: int, size: int = 10) -> Record:
    return Record(run=RUN, route="batches", key={"step": seq}, seq=seq, body=bytes([seq % 256]) * size)


def _fill(spool: Spool, *seqs: int, size: int = 10) -> None:
    for seq in seqs:
        spool.append(_record(seq, size))


def _drain(spool: Spool, limit: int = 1000) -> list[int]:
    seqs: list[int] = []
    while len(seqs) < limit and (entry := spool.head()) is not None:
        seqs.append(entry.record.seq)
        assert spool.settle(entry)
    return seqs


def _die(spool: Spool) -> None:
    """What the kernel does for a process that is killed."""
    spool.abandon()


def test_records_come_back_in_order_and_leave_only_when_settled(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    _fill(spool, 0, 1, 2)

    entry = spool.head()
    assert entry is not None
    assert entry is spool.head()
    assert entry.record == _record(0)
    assert spool.pending == 3
    assert spool.settle(entry)
    assert not spool.settle(entry)
    _fill(spool, 3)
    assert _drain(spool) == [1, 2, 3]
    assert spool.pending == 0
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_created_before_the_first_record(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "deep" / "spool")
    assert spool.head() is None
    assert spool.adopt() == 0
    spool.close()

    assert list(tmp_path.iterdir()) == []


def test_a_restart_replays_exactly_what_was_not_settled(tmp_path: Path) -> None:
    first = _spool(tmp_path)
    _fill(first, *range(10))
    assert _drain(first, 4) == [0, 1, 2, 3]
    _die(first)
    second = _spool(tmp_path)
    assert second.adopt() == 1
    _fill(second, 100)

    assert second.pending == 1
    assert _drain(second) == [*range(4, 10), 100]
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_an_adopter_that_dies_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    first = _spool(tmp_path)
    _fill(first, *range(6))
    _die(first)
    second = _spool(tmp_path)
    second.adopt()
    assert _drain(second, 2) == [0, 1]
    _die(second)
    third = _spool(tmp_path)
    assert third.adopt() == 1

    assert _drain(third) == [2, 3, 4, 5]


def test_a_clean_close_keeps_what_is_left(tmp_path: Path) -> None:
    first = _spool(tmp_path)
    _fill(first, 0, 1)
    entry = first.head()
    first.close()
    assert first.pending == 2
    assert entry is not None
    assert not first.settle(entry)  # it is whoever adopts it who settles it
    second = _spool(tmp_path)
    second.adopt()

    assert _drain(second) == [0, 1]


def test_nobody_adopts_a_shelf_that_is_in_use(tmp_path: Path) -> None:
    first = _spool(tmp_path)
    _fill(first, 0)
    other = _spool(tmp_path)

    assert other.adopt() == 0
    assert other.head() is None
    assert _drain(first) == [0]


def test_only_one_of_many_adopts(tmp_path: Path) -> None:
    dead = _spool(tmp_path)
    _fill(dead, *range(20))
    _die(dead)
    spools = [_spool(tmp_path) for _ in range(8)]
    taken: list[int] = []
    start = threading.Barrier(len(spools))

    def adopt(spool: Spool) -> None:
        start.wait(30)
        taken.append(spool.adopt())

    threads = [threading.Thread(target=adopt, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(taken) == [0] * 7 + [1]
    assert sorted(seq for spool in spools for seq in _drain(spool)) == list(range(20))


@pytest.mark.parametrize(("url", "adopted"), [(URL, 1), (None, 1), ("http://elsewhere:1", 0)])
def test_what_was_meant_for_another_service_stays_where_it_is(tmp_path: Path, url: str | None, adopted: int) -> None:
    dead = _spool(tmp_path, url=url)
    _fill(dead, 0)
    _die(dead)

    assert _spool(tmp_path).adopt() == adopted


def test_a_process_that_is_killed_leaves_its_shelf_free(tmp_path: Path) -> None:
    code = f"""
import os, signal
from tests.collectors.test_spool import _fill, _spool
from pathlib import Path
spool = _spool(Path({str(tmp_path)!r}))
_fill(spool, *range(50))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, check=False, env={**os.environ})
    spool = _spool(tmp_path)

    assert done.returncode == -9
    assert spool.adopt() == 1
    assert _drain(spool) == list(range(50))


def test_a_full_spool_drops_the_oldest_and_counts_it(tmp_path: Path) -> None:
    spool = _spool(tmp_path, nbytes=8192)
    for seq in range(100):
        _fill(spool, seq, size=500)
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) <= 8192
        assert spool.nbytes <= 8192
    kept = _drain(spool)

    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) >= 8
    assert spool.full_dropped == 100 - len(kept)


def test_a_record_under_way_that_is_dropped_is_not_settled(tmp_path: Path) -> None:
    spool = _spool(tmp_path, nbytes=8192)
    _fill(spool, 0, size=500)
    entry = spool.head()
    assert entry is not None
    _fill(spool, *range(1, 40), size=500)

    assert not spool.settle(entry)
    assert spool.full_dropped + len(_drain(spool)) == 40


def test_what_was_adopted_counts_against_the_bound_and_goes_first(tmp_path: Path) -> None:
    dead = _spool(tmp_path, nbytes=8192)
    _fill(dead, *range(12), size=500)
    _die(dead)
    spool = _spool(tmp_path, nbytes=8192)
    spool.adopt()
    _fill(spool, *range(100, 110), size=500)

    assert spool.nbytes <= 8192
    assert spool.full_dropped == 0
    kept = _drain(spool)
    assert kept[-10:] == list(range(100, 110))
    assert spool.adopted_dropped + len(kept) == 22


def test_more_than_the_bound_is_left_for_others_to_adopt(tmp_path: Path) -> None:
    for _ in range(3):
        dead = _spool(tmp_path, nbytes=8192)
        _fill(dead, *range(10), size=500)
        _die(dead)
    spool = _spool(tmp_path, nbytes=8192)

    assert spool.adopt() == 1
    assert _drain(spool) == list(range(10))
    assert spool.adopt() == 1


def test_a_record_larger_than_the_spool_is_refused(tmp_path: Path) -> None:
    spool = _spool(tmp_path, nbytes=4096)
    _fill(spool, 0)
    with pytest.raises(TooLargeError, match="larger than the spool"):
        _fill(spool, 1, size=5000)

    assert _drain(spool) == [0]


def test_a_full_disk_leaves_the_spool_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = _spool(tmp_path)
    _fill(spool, 0, 1)
    write = os.write
    room = 30

    def full(descriptor: int, data: Any) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, bytes(data)[:room])
        room -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for seq in (2, 3):
            with pytest.raises(OSError, match="No space"):
                _fill(spool, seq)
    _fill(spool, 4)

    assert spool.pending == 3
    assert _drain(spool) == [0, 1, 4]
    assert spool.damaged == 0


@pytest.mark.parametrize("offset", range(0, 400, 7))
def test_a_spool_damaged_anywhere_replays_the_rest(tmp_path: Path, offset: int) -> None:
    dead = _spool(tmp_path)
    _fill(dead, *range(4))
    _die(dead)
    (path,) = tmp_path.rglob("*.seg")
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 0xFF
    path.write_bytes(data)
    spool = _spool(tmp_path)
    spool.adopt()
    seqs = _drain(spool)

    assert len(seqs) >= 3
    assert seqs == sorted(set(seqs))
    assert spool.damaged == 1


def test_own_records_lost_to_damage_are_counted(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    _fill(spool, *range(4))
    (path,) = tmp_path.rglob("*.seg")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 5])

    assert _drain(spool) == [0, 1, 2]
    assert (spool.damage_dropped, spool.damaged, spool.pending) == (1, 1, 0)


def test_a_damaged_cursor_only_costs_duplicates(tmp_path: Path) -> None:
    dead = _spool(tmp_path)
    _fill(dead, *range(4))
    _drain(dead, 2)
    _die(dead)
    (cursor,) = tmp_path.rglob("cursor")
    cursor.write_bytes(b"\x01" * 20)
    spool = _spool(tmp_path)
    spool.adopt()

    assert _drain(spool) == [0, 1, 2, 3]


def test_a_directory_that_somebody_deleted_is_made_anew(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    _fill(spool, 0, 1)
    (mine,) = tmp_path.iterdir()
    for path in mine.iterdir():
        path.unlink()
    mine.rmdir()
    _fill(spool, 2)

    assert spool.damage_dropped == 2
    assert _drain(spool) == [2]


@pytest.mark.parametrize(("policy", "synced"), [("always", 2), ("interval", 1), ("never", 0)])
def test_how_often_the_disk_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Fsync, synced: int
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    spool = _spool(tmp_path, fsync=policy)
    _fill(spool, 0, 1)
    spool.sync()
    spool.sync()

    assert len(calls) == synced


def test_earlier_launches_of_the_run_are_known_in_their_order(tmp_path: Path) -> None:
    for session in ("first", "second", "second", "s"):
        spool = _spool(tmp_path, run={**RUN, "session": session, "framework": "own"})
        _fill(spool, 0)
        _die(spool)
    other = _spool(tmp_path, run={**RUN, "name": "other", "session": "x"})
    _fill(other, 0)

    assert _spool(tmp_path).earlier_runs() == [
        {**RUN, "session": "first", "framework": "own"},
        {**RUN, "session": "second", "framework": "own"},
    ]


def test_what_is_no_shelf_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "7-empty").mkdir()
    (tmp_path / "8-odd").mkdir()
    (tmp_path / "8-odd" / "lock").write_text("[1]")
    spool = _spool(tmp_path)
    spool.adopt()
    _fill(spool, 0)

    assert _drain(spool) == [0]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert spool.earlier_runs() == []


def test_the_lock_says_whose_it_is(tmp_path: Path) -> None:
    spool = _spool(tmp_path)
    _fill(spool, 0)
    (lock,) = tmp_path.rglob("lock")

    assert json.loads(lock.read_text()) == {**RUN, "url": URL}
    assert lock.stat().st_mode & 0o077 == 0  # log-probs and texts are nobody else's business


def test_a_shelf_that_cannot_be_made_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "1-x").mkdir()
    (tmp_path / "1-x" / "in the way").write_text("")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # of this process
    with pytest.raises(OSError, match=r"not empty|exists"):
        Shelf.create(tmp_path, "1-x", RUN)

    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
