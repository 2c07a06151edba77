"""`gather="rank0"`: every rank's batch to rank 0, which sends for all, for those who want one connection per job.

It is a collective: every rank has to record the same number of times, in the same order, and each call waits for the
slowest rank and for the network between them. Without it each rank sends its own shard and nobody waits; that is the
default for a reason. The collective runs on the host (gloo), so it costs the GPUs nothing.
"""

from __future__ import annotations

import sys
from typing import Any

from tailwatch_collectors.batch import Batch


class Gatherer:
    """Gathers the batches of one call of `record` on rank 0."""

    def __init__(self) -> None:
        self._group: Any = None

    def __call__(self, batch: Batch | None) -> list[Batch] | None:
        """All ranks' batches on rank 0, in rank order; none on the others; None where nothing is distributed.

        A rank whose arrays form no batch takes part with None: the others must not wait for it forever.
        """
        distributed: Any = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return None
        if self._group is None:
            gloo = distributed.get_backend() == "gloo"
            self._group = distributed.group.WORLD if gloo else distributed.new_group(backend="gloo")
        first = distributed.get_rank() == 0
        found: list[Any] | None = [None] * distributed.get_world_size() if first else None
        distributed.gather_object(batch, found, dst=0, group=self._group)
        return [one for one in found or [] if one is not None]
