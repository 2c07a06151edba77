"""The leaf of types: what one batch is about, and the names and limits every package shares.

Imports nothing of ours. Shape letters used in this package: B sequences, T padded tokens, N tokens laid end to
end (ragged), K grid cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SCHEMA_VERSION = 1
"""Version of the wire record (design: "Wire record")."""

Phase = Literal["rollout", "update", "update_perturbed", "probe"]
"""When the train log-probs were computed: before the first update, inside the loss, perturbed, or on a probe."""

PHASES: tuple[Phase, ...] = get_args(Phase)

MAX_STEP = 2**53 - 1
"""Largest step, update index and version: what JSON readers keep exact."""

MAX_RANK = 2**20 - 1
"""Largest rank: far above any cluster, far below what would be a mistake."""

MAX_PART = 2**20 - 1
"""Largest part number of one rank's step."""

MAX_NAME_LENGTH = 256
"""Longest project, run, stream, session, source, replica or sequence name, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchMeta:
    """What one batch is about: the stream metadata of a wire record.

    `(run, stream, attempt, step, phase, update_index, rank, part)` is its key; the run is named by the URL, or by
    `project` and `run` in a spooled record, and the attempt by `session` or `attempt`.
    """

    step: int
    """Training step, 0 .. MAX_STEP."""
    rank: int = 0
    """Data-parallel rank that recorded it."""
    world_size: int | None = None
    """Ranks expected for this step; None where the trainer does not say."""
    part: int = 0
    """Number of this part among the parts of one rank's step."""
    final: bool = True
    """True on the last part of this rank's step."""
    phase: Phase = "rollout"
    """When the train log-probs were computed."""
    update_index: int = 0
    """Optimiser step within the training step, for the update phases."""
    stream: str = "train"
    """Policy, adapter or eval stream within the run."""
    session: str | None = None
    """Launch of the job this came from; the service maps it to an attempt. None: the run's latest attempt."""
    attempt: int | None = None
    """Attempt number, where the client knows it; wins over `session`."""
    train_version: int | None = None
    """Version of the training weights behind `train_logprobs`; None: unknown, so lag is unknown."""
    framework: str | None = None
    """For example `trl 1.16.0`."""
    recorded_at: float | None = None
    """Unix seconds at which the trainer recorded it."""
    project: str | None = None
    """Project name, in records that travel without a URL (spool, recordings)."""
    run: str | None = None
    """Run name, likewise."""
