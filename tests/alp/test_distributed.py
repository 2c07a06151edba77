"""Two data-parallel ranks on gloo, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")


def play(scenario: str, directory: Path) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(WORKER), scenario, str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_data_parallel_ranks(tmp_path_factory: pytest.TempPathFactory) -> None:
    zero, one = play("ddp", tmp_path_factory.mktemp("ddp"))
    for answer in (zero, one):
        assert answer["clean"]
        assert answer["clean_after"]
    assert zero["noisy"] != one["noisy"]
    assert zero["replica"] == one["replica"]  # tensor-parallel ranks hold the same tokens
    assert (zero["resumed"], one["resumed"]) == (zero["noisy"], one["noisy"])
    assert zero["weight_gradient"] == one["weight_gradient"]  # DDP reduced it
    before = [answer["sigma_gradient_before"] for answer in (zero, one)]
    assert before[0] != before[1]
    assert zero["sigma_gradient"] == one["sigma_gradient"]
    assert zero["sigma_gradient"] == pytest.approx([(a + b) / 2 for a, b in zip(*before, strict=True)])


def test_fully_sharded_ranks(tmp_path_factory: pytest.TempPathFactory) -> None:
    zero, one = play("fsdp", tmp_path_factory.mktemp("fsdp"))
    for answer in (zero, one):
        assert answer["clean"]
        assert answer["clean_after"]
        assert answer["same_as_unsharded"]
        assert answer["gradient_error"] < 1e-7
        assert not answer["names"]
    assert zero["noisy"] != one["noisy"]


def test_checkpointing_of_sharded_blocks_that_cast_their_input(tmp_path_factory: pytest.TempPathFactory) -> None:
    for answer in play("sharded_precision", tmp_path_factory.mktemp("precision")):
        assert answer["same_output"]
        assert answer["same_gradients"]


def test_tensor_parallel_ranks_share_their_noise(tmp_path_factory: pytest.TempPathFactory) -> None:
    zero, one = play("tensor_parallel", tmp_path_factory.mktemp("tensor"))
    assert zero == one
    for answer in zero.values():
        assert answer["data_rank"] == 0
        assert answer["error"] < 1e-5 < answer["moved"]
        assert answer["gradient_error"] < 1e-6


def test_ranks_are_asked_for_when_there_are_some(tmp_path_factory: pytest.TempPathFactory) -> None:
    zero, one = play("late", tmp_path_factory.mktemp("late"))
    assert (zero["alone"], one["alone"]) == (0, 0)
    assert (zero["together"], one["together"]) == (0, 1)
    assert zero["noisy"] != one["noisy"]


def test_both_ranks_switch_at_the_same_steps(tmp_path_factory: pytest.TempPathFactory) -> None:
    zero, one = play("switching", tmp_path_factory.mktemp("switching"))
    assert zero["history"] == one["history"]
    assert zero["history"] == [
        *[["off", 0.0]] * 4,
        *[["on", 0.2]] * 4,
        ["decay", 0.1333],
        ["decay", 0.0667],
        *[["off", 0.0]] * 4,
        *[["on", 0.1]] * 3,
        *[["off", 0.0]] * 3,  # rank 1's noise had no effect at step 16: both are off from 17 on
    ]
    assert (zero["refused"], one["refused"]) == (1 * 8, 1 * 8)  # steps 6 to 13 repeat the nonsense
