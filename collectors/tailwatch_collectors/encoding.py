"""Encoding: a checked batch as what is posted, in a background thread.

As tokens it is the wire record. At the edge it is the summary, which keeps the worst tokens of both tails, and a
random sample of all. A batch without rows only says that a step is over; it travels as a wire record either way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tailwatch_collectors import wire
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.items import Form, Post
from tailwatch_collectors.settings import Compression
from tailwatch_collectors.types import BatchMeta


class Encoder:
    """Encodes batches, and shows the first one of every stream to `inspect`."""

    def __init__(
        self,
        *,
        compression: Compression | None,
        inspect: Callable[[Batch], None],
    ) -> None:
        self._compression = compression
        self._inspect = inspect
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, batch: Batch, form: Form) -> Post:
        """What is posted for a batch."""
        if batch.sequences:
            with self._lock:
                new = batch.meta.stream not in self._seen
                self._seen.add(batch.meta.stream)
            if new:
                self._inspect(batch)
        if form == "tokens" or batch.sequences == 0:
            return Post(route="batches", key=key_of(batch.meta), body=wire.encode(batch, compression=self._compression))
        return Post(route="summaries", key=parameters(batch.meta), body=summarised(batch))


def summarised(batch: Batch) -> bytes:
    """The bytes of a batch's summary, with the worst tokens of both tails and a random sample of all."""
    # Only the edge needs it, and with it the grids and kernels.
    from tailwatch_collectors.summary import summarise, to_bytes
    from tailwatch_collectors.summary.backend import VARIABLE

    # Compiling holds the interpreter for many seconds, which a trainer must not notice: numba only where asked for.
    return to_bytes(summarise(batch, sample=True, backend="auto" if os.environ.get(VARIABLE) else "numpy"))


def key_of(meta: BatchMeta) -> dict[str, Any]:
    """What makes a batch the same batch, however often it is sent."""
    names = ("stream", "session", "attempt", "step", "phase", "update_index", "rank", "part")
    return {name: value for name in names if (value := getattr(meta, name)) is not None}


def parameters(meta: BatchMeta) -> dict[str, Any]:
    """Metadata of a summary, as the query parameters of its request; `project` and `run` are named by the URL."""
    values = {name: value for name, value in asdict(meta).items() if name not in {"project", "run"}}
    return {name: value for name, value in values.items() if value is not None}
