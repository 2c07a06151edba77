"""Nothing that befalls the service, the disk or the trainer changes the training, and every batch is accounted for.

Each scenario is a real trainer process; at the end of most of them the spool is sent to the real service, whose
database is then asked what it holds: every batch once. `scripts/harm_report.py` writes the same scenarios as a table.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailwatch_collectors.segment import HEADER, Record
from tailwatch_collectors.spool import Spool
from tests.e2e import harm
from tests.e2e.harm import STEPS, Account, Real

ALL = [("train", step, 0) for step in range(STEPS)]
SURVIVES = [name for name in harm.SCENARIOS if name not in {"healthy", "killed", "terminated"}]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Account:
    """The same training without a collector."""
    return harm.train(tmp_path_factory.mktemp("baseline"), url=None, connect=False)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """The real service, for what it gets during the training or from the disk afterwards."""
    service = Real(tmp_path_factory.mktemp("data"))
    service.start()
    yield service
    service.kill()


def _run(name: str, root: Path, service: Real) -> Account:
    if name == "disk_full" and not harm.can_mount():
        pytest.skip("no file system may be mounted here; files_too_large is refused by the kernel likewise")
    own = root / name
    own.mkdir()
    return harm.SCENARIOS[name][1](own, service)


@pytest.mark.parametrize("name", ["healthy", *SURVIVES])
def test_the_training_is_the_same_to_the_last_bit(name: str, baseline: Account, healthy: Real, tmp_path: Path) -> None:
    found = _run(name, tmp_path, healthy)

    assert found.status == 0
    assert found.digest == baseline.digest
    assert found.accounted
    assert found.stats["queued"] == 0
    # Bounded: the queue, buffers kept for reuse, one batch under way, the libraries.
    assert found.rss_bytes - baseline.rss_bytes < 2 * harm.QUEUE_BYTES + 160 * 2**20
    assert found.spool_bytes <= harm.SPOOL_BYTES
    dropped = sum(found.stats["dropped"].values())
    # Nothing is there twice, and what is missing was counted as dropped.
    assert max(Counter(found.stored).values(), default=1) == 1
    if name == "no_spool":
        assert dropped == found.stats["recorded"] == STEPS
    elif name in {"down_forever_spool_full", "files_too_large", "disk_full"}:
        assert dropped > 0
        assert len(found.stored) == STEPS - dropped
    elif name == "thousand_threads":
        # More at once than the queue holds and the disk takes meanwhile: the oldest were dropped, and counted.
        assert len(found.stored) == STEPS + 1000 - dropped
        assert dropped < 1000
    elif name == "forked":
        assert dropped == 0
        assert [worker["dropped"] for worker in found.workers] == [{}] * 3
        assert found.stored == sorted([*ALL, *(("worker", step, 0) for step in (5, 10, 15))])
    else:
        assert dropped == 0
        assert found.stored == ALL


def test_a_killed_trainer_loses_at_most_what_was_in_its_memory(healthy: Real, tmp_path: Path) -> None:
    found = _run("killed", tmp_path, healthy)

    assert found.status == 0
    assert found.accounted
    assert max(Counter(found.stored).values()) == 1
    steps = {step for _, step, _ in found.stored}
    # What was handed over last may not have been on disk yet; everything else is there.
    assert steps >= set(range(STEPS // 2 - 2)) | set(range(STEPS // 2, STEPS))


def test_a_terminated_trainer_loses_nothing(healthy: Real, tmp_path: Path) -> None:
    found = _run("terminated", tmp_path, healthy)
    steps = [step for _, step, _ in found.stored]

    assert found.status == -signal.SIGTERM
    assert steps == sorted(set(steps))
    assert steps[: STEPS // 2 + 1] == list(range(STEPS // 2 + 1))


def test_a_spool_corrupted_at_any_byte_of_its_tail_replays_all_else(tmp_path: Path) -> None:
    run = {"project": "p", "name": "r"}

    def spool() -> Spool:
        return Spool(tmp_path / "spool", nbytes=2**20, fsync="never", run=run, url=None)

    written = spool()
    for seq in range(4):
        written.append(Record(run=run, route="batches", key={"step": seq}, seq=seq, body=b"body" * 8))
    written.close()
    (path,) = tmp_path.rglob("*.seg")
    data, lock = path.read_bytes(), (path.parent / "lock").read_bytes()
    tail = (len(data) - len(HEADER)) // 4  # the last record: all are of one size
    for offset in range(len(data) - 2 * tail, len(data)):
        for cut in (False, True):
            path.parent.mkdir(exist_ok=True)
            (path.parent / "lock").write_bytes(lock)
            flipped = data[:offset] + bytes([data[offset] ^ 0x55]) + data[offset + 1 :]
            path.write_bytes(data[:offset] if cut else flipped)
            replaying = spool()
            assert replaying.adopt() == 1
            seqs: list[int] = []
            while (entry := replaying.head()) is not None:
                seqs.append(entry.record.seq)
                assert replaying.settle(entry)
            hit = 2 if offset < len(data) - tail else 3
            assert seqs == [seq for seq in range(4) if seq < hit or (seq > hit and not cut)]
            whole = cut and offset == len(data) - (4 - hit) * tail
            assert replaying.damaged == (0 if whole else 1)
            replaying.close()
