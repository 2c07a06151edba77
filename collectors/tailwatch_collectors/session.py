"""Who we are among the processes of a job: rank, world size, and the session.

The session names one launch of the job. The service makes one attempt of it, so every rank of a launch has to name
the same one, and a restart another one. Launchers that number their launches are asked first; then the store that
torch.distributed keeps anyway. Nothing here is a collective, so a rank that connects alone does not hang.
"""

from __future__ import annotations

import logging
import sys
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.types import MAX_RANK

_log = logging.getLogger("tailwatch")

STORE_TIMEOUT = 5.0
"""Longest wait for torch.distributed's store, seconds."""

_PLACEMENTS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


def placement(
    environ: Mapping[str, str], *, rank: int | None = None, world_size: int | None = None
) -> tuple[int, int | None]:
    """Rank and world size: as given, else torchrun's, else Slurm's, else rank 0 of an unknown number.

    Raises:
        ConfigurationError: a value is not a number, or out of range.
    """
    for rank_name, size_name in _PLACEMENTS:
        if environ.get(rank_name):
            rank = _number(rank_name, environ[rank_name]) if rank is None else rank
            if world_size is None and environ.get(size_name):
                world_size = _number(size_name, environ[size_name])
            break
    rank = 0 if rank is None else rank
    for name, value, low, high in (("rank", rank, 0, MAX_RANK), ("world_size", world_size, 1, MAX_RANK + 1)):
        if value is None and name == "world_size":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigurationError(f"{name} is {value!r}, expected an integer in {low} .. {high}")
    if world_size is not None and rank >= world_size:
        raise ConfigurationError(f"rank {rank} is not below world_size {world_size}")
    return rank, world_size


def find_session(environ: Mapping[str, str]) -> tuple[str, bool]:
    """The session of this launch, and whether the other ranks of the launch find the same one.

    torchelastic's run id and restart count; else Slurm's job, step and restart count; else one drawn through the
    store of torch.distributed, where that is initialised; else random.
    """
    elastic = environ.get("TORCHELASTIC_RUN_ID", "")
    restarts = environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    # Without --rdzv-id torchrun calls every launch "none": that names no launch.
    if elastic and elastic != "none":
        return f"elastic-{elastic}-{restarts}"[:256], True
    if environ.get("SLURM_JOB_ID"):
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return "-".join(["slurm", *(environ.get(name) or "0" for name in names)])[:256], True
    shared = _from_store(f"tailwatch/session/{restarts}")
    return (shared, True) if shared else (uuid.uuid4().hex, False)


def _from_store(key: str) -> str | None:
    """The id whichever rank came first left in torch.distributed's store; None where there is no such store."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None:
        return None
    found: list[str] = []

    def ask() -> None:
        try:
            if distributed.is_available() and distributed.is_initialized():
                store = distributed.distributed_c10d._get_default_store()
                # An atomic set-if-absent: no rank has to wait for another.
                found.append(store.compare_set(key, "", uuid.uuid4().hex).decode())
        except Exception as error:  # noqa: BLE001  # torch's own types differ by version; the caller falls back
            _log.warning("no session could be shared through torch.distributed's store: %r", error)

    # In a thread, because a store whose host has died answers only after minutes.
    thread = threading.Thread(target=ask, name="tailwatch-session", daemon=True)
    thread.start()
    thread.join(STORE_TIMEOUT)
    return found[0] if found else None


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"environment variable {name} is {text!r:.80}, expected an integer") from None
