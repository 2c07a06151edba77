"""Streams a run into a running service, through the public SDK and nothing else: what any trainer would do."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

import tailwatch_collectors as tailwatch
from lab.recording import Provenance
from tailwatch_collectors.batch import Batch

_CONFIG = ("model_class", "precision", "temperature", "top_p", "staleness_bound")
"""Settings of the run that the service keeps."""


class LiveSink:
    """A sink that hands everything to a collector; says at the end what became of it."""

    def __init__(self, url: str, *, provenance: Provenance) -> None:
        self._collector = tailwatch.connect(
            project=provenance.project,
            run=provenance.run,
            url=url,
            rank=0,
            world_size=provenance.settings["world_size"],
            framework=provenance.framework,
            config={name: provenance.settings[name] for name in _CONFIG},
            overhead_budget=0,  # a step of the lab takes milliseconds: no share of it is small
        )

    def batch(self, batch: Batch) -> None:
        """Record the tokens of one step."""
        cuts = batch.offsets_B1[1:-1]
        token_ids_N = batch.token_ids_N
        self._collector.record(
            step=batch.meta.step,
            train_version=batch.meta.train_version,
            infer_logprobs=np.split(batch.infer_logprobs_N, cuts),
            train_logprobs=np.split(batch.train_logprobs_N, cuts),
            token_ids=None if token_ids_N is None else np.split(token_ids_N, cuts),
            advantage=batch.advantage_B,
            reward=batch.reward_B,
            infer_version=batch.infer_version_B,
            seq_id=batch.seq_id,
            prompt_id=batch.prompt_id,
        )

    def scalars(self, step: int, *, values: Mapping[str, float]) -> None:
        """Send the scalars of one step."""
        self._collector.scalars(step=step, values=dict(values))

    def event(self, kind: str, *, step: int, payload: Mapping[str, Any]) -> None:
        """Send one event."""
        self._collector.event(kind, step=step, payload=dict(payload))

    def __enter__(self) -> LiveSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collector.close(finished=error is None)
        stats = self._collector.stats
        lost = stats.rejected + sum(stats.dropped.values())
        print(f"live: {stats.sent} items stored, {lost} lost, {stats.bytes / 1e6:.1f} MB sent")
        if not stats.sent:
            print("live: nothing was stored; is the service up? start it with `tailwatch serve`")
