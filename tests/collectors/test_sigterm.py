"""SIGTERM: memory goes to disk, and what the signal would have done it does all the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tailwatch_collectors.spool import Spool

HEAD = """
import os, signal, sys, time
import numpy as np
import tailwatch_collectors as tailwatch
def mine(number, frame):
    print("mine", flush=True)
    {body}
{before}
collector = tailwatch.connect(
    project="p", run="r", url=sys.argv[1], session="s", spool_dir=sys.argv[2], timeout=60, sigterm_timeout={timeout}
)
x = np.full((2, 3), -1.0, np.float32)
for step in range(5):
    collector.record(step=step, infer_logprobs=x, train_logprobs=x)
{after}
print("ready", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    time.sleep(0.01)
    {loop}
"""


def _run(
    tmp_path: Path,
    *,
    body: str = "pass",
    before: str = "",
    after: str = "",
    loop: str = "pass",
    timeout: float = 2.0,
    spool: str | None = None,
    signals: int = 1,
) -> tuple[int, str, int]:
    """Exit status, output, and what the spool holds afterwards, of a trainer that gets SIGTERM."""
    code = HEAD.format(body=body, before=before, after=after, loop=loop, timeout=timeout)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepts and never answers
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, url, spool or str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)
        out, _ = process.communicate(timeout=60)
    left = Spool(tmp_path, nbytes=2**20, fsync="never", run={}, url=url)
    left.adopt()
    count = 0
    while (entry := left.head()) is not None:
        count += 1
        left.settle(entry)
    return process.returncode, out, count


def test_the_default_effect_is_kept_and_nothing_is_lost(tmp_path: Path) -> None:
    assert _run(tmp_path) == (-signal.SIGTERM, "", 5)


def test_the_trainers_own_handler_runs_afterwards(tmp_path: Path) -> None:
    before = "signal.signal(signal.SIGTERM, mine)"

    assert _run(tmp_path, before=before, body="os._exit(7)") == (7, "mine\n", 5)
    assert _run(tmp_path, before=before, body="sys.exit(3)") == (3, "mine\n", 5)


def test_a_handler_that_lets_the_training_go_on_finds_the_collector_open(tmp_path: Path) -> None:
    before = "told = []\nsignal.signal(signal.SIGTERM, mine)"
    loop = """
    if told:
        collector.record(step=99, infer_logprobs=x, train_logprobs=x)
        collector.close(20.0)
        print(collector.stats.recorded, dict(collector.stats.dropped), flush=True)
        sys.exit(0)
"""
    status, out, left = _run(tmp_path, before=before, body="told.append(1)", loop=loop)

    assert (status, out, left) == (0, "mine\n6 {}\n", 6)


def test_a_handler_installed_later_is_the_trainers_affair(tmp_path: Path) -> None:
    status, out, _ = _run(tmp_path, after="signal.signal(signal.SIGTERM, mine)", body="os._exit(7)")

    assert (status, out) == (7, "mine\n")


def test_it_can_be_left_alone(tmp_path: Path) -> None:
    after = "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL"
    status, out, left = _run(tmp_path, timeout=0, after=after)

    assert (status, out, left) == (-signal.SIGTERM, "", 0)


def test_an_ignored_sigterm_stays_ignored(tmp_path: Path) -> None:
    status, _, _ = _run(
        tmp_path,
        before="signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        loop="collector.close(0.2) if time.monotonic() > deadline - 59.5 else None; "
        "sys.exit(5) if time.monotonic() > deadline - 59.5 else None",
    )

    assert status == 5


def test_without_a_spool_it_is_bounded_in_time(tmp_path: Path) -> None:
    started = time.monotonic()
    status, _, left = _run(tmp_path, spool="off", timeout=0.3)

    assert (status, left) == (-signal.SIGTERM, 0)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("signals", [2, 3])
def test_a_second_signal_changes_nothing(tmp_path: Path, signals: int) -> None:
    status, _, left = _run(tmp_path, signals=signals)

    assert status == -signal.SIGTERM
    assert left == 5
