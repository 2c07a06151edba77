"""Rank, world size and session from what launchers leave in the environment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest

from tailwatch_collectors import session
from tailwatch_collectors.session import find_session, placement


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, None)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (3, 8)),
        ({"RANK": "3", "SLURM_NTASKS": "2"}, (3, None)),
        ({"SLURM_NTASKS": "2"}, (0, None)),
        ({"RANK": ""}, (0, None)),
    ],
)
def test_placement(environ: dict[str, str], expected: tuple[int, int | None]) -> None:
    assert placement(environ) == expected


def test_given_placement_wins() -> None:
    environ = {"RANK": "3", "WORLD_SIZE": "8"}

    assert placement(environ, rank=0, world_size=1) == (0, 1)
    assert placement(environ, rank=1) == (1, 8)


def test_torchelastic_session_changes_with_every_restart() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "job-1", "TORCHELASTIC_RESTART_COUNT": "0", "SLURM_JOB_ID": "5"}
    first = find_session(environ)

    assert first == find_session(dict(environ))
    assert first != find_session(environ | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert first[1]


def test_slurm_session_changes_with_step_and_requeue() -> None:
    environ = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"}
    first = find_session(environ)

    assert first == find_session(dict(environ))
    assert first != find_session(environ | {"SLURM_RESTART_COUNT": "1"})
    assert first != find_session(environ | {"SLURM_STEP_ID": "1"})
    assert first[1]


def test_torchruns_default_name_is_no_launch() -> None:
    one, shared = find_session({"TORCHELASTIC_RUN_ID": "none"})
    other, _ = find_session({"TORCHELASTIC_RUN_ID": "none"})

    assert one != other
    assert not shared


class _Distributed(types.ModuleType):
    """As much of torch.distributed as the session asks."""

    def __init__(self, values: dict[str, str], *, hang: threading.Event | None = None) -> None:
        super().__init__("torch.distributed")
        self.values = values
        self.hang = hang
        self.distributed_c10d = self

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _get_default_store(self) -> _Distributed:
        return self

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        if self.hang is not None:
            self.hang.wait(30)
        assert expected == ""
        return self.values.setdefault(key, value).encode()


def test_ranks_share_a_session_through_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, str] = {}
    found = []
    for _rank in range(2):
        monkeypatch.setitem(sys.modules, "torch.distributed", _Distributed(values))
        found.append(find_session({}))

    assert found[0] == found[1]
    assert found[0][1]
    assert find_session({"TORCHELASTIC_RESTART_COUNT": "1"}) != found[0]


def test_a_store_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(session, "STORE_TIMEOUT", 0.05)
    monkeypatch.setitem(sys.modules, "torch.distributed", _Distributed({}, hang=hang))

    _, shared = find_session({})

    hang.set()
    assert not shared


def test_a_store_that_breaks_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed", types.ModuleType("torch.distributed"))

    _, shared = find_session({})

    assert not shared


@pytest.mark.slow
def test_real_process_group_shares_a_session(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        import torch.distributed as dist
        from tailwatch_collectors.session import find_session
        rank = int(sys.argv[1])
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
        print(*find_session({}))
        dist.barrier()
        dist.destroy_process_group()
        """
    )
    command = [sys.executable, "-c", script]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [rank.communicate(timeout=120)[0].split() for rank in ranks]

    assert found[0] == found[1]
    assert found[0][1] == "True"
