"""`gather="rank0"`: two real processes over gloo, one of which talks to the service."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tailwatch_collectors as tailwatch

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

WORKER = """
import json, os, sys
os.environ["TAILWATCH_SWALLOW"] = "1"
import numpy as np
import torch.distributed as dist
import tailwatch_collectors as tailwatch
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
collector = tailwatch.connect(
    project="p", run="r", url=sys.argv[1], session="s", spool_dir="off", gather="rank0", sigterm_timeout=0
)
for step in range(3):
    x = np.full((rank + 1, 2), -1.0 - step, np.float32)
    wrong = x[:, :1] if (step, rank) == (1, 1) else x
    collector.record(step=step, infer_logprobs=x, train_logprobs=wrong)
collector.close(30)
stats = collector.stats
print(json.dumps({"sent": stats.sent, "gathered": stats.gathered, "recorded": stats.recorded,
                  "dropped": dict(stats.dropped), "errors": stats.errors}))
dist.destroy_process_group()
"""


def _run(url: str) -> list[dict[str, Any]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environ = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", WORKER, url], env=environ, stdout=subprocess.PIPE, text=True)
        processes.append(process)
    said = []
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        said.append(json.loads(out))
    return said


@pytest.mark.slow
def test_rank_0_sends_for_all_and_a_rank_with_wrong_arrays_holds_nobody_up(service: FakeService) -> None:
    first, second = _run(service.url)

    assert sorted((key[0], key[4]) for key in service.batches) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert {batch.sequences for key, batch in service.batches.items() if key[4] == 1} == {2}
    assert {batch.meta.world_size for batch in service.batches.values()} == {2}
    assert (first["sent"], first["gathered"]) == (5, 0)
    assert (second["sent"], second["gathered"], second["errors"]) == (0, 2, 1)
    assert second["dropped"] == {"invalid": 1}
    assert len(service.of("runs")) <= 2


def test_alone_it_sends_its_own(service: FakeService) -> None:
    x = np.full((2, 3), -1.0, np.float32)
    with tailwatch.connect(project="p", run="r", url=service.url, session="s", gather="rank0") as collector:
        collector.record(step=0, infer_logprobs=x, train_logprobs=x)
        assert collector.flush(30)

    assert [key[0] for key in service.batches] == [0]
