"""Which code turns a batch into a summary. Nothing is imported before it is used: numba takes a second.

TAILWATCH_SUMMARY_BACKEND names the backend for every call that leaves the choice open.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from tailwatch_collectors.errors import TailwatchError

if TYPE_CHECKING:
    from tailwatch_collectors.batch import Batch
    from tailwatch_collectors.summary.summary import Summary

Backend = Literal["auto", "numba", "numpy", "reference"]
VARIABLE = "TAILWATCH_SUMMARY_BACKEND"


class BackendError(TailwatchError, ValueError):
    """A backend that does not exist, or is not installed."""


class Summariser(Protocol):
    """One backend."""

    def __call__(self, batch: Batch, *, sample: bool, threads: int) -> Summary:
        """The summary of a batch."""


def choose(backend: Backend = "auto") -> Summariser:
    """The backend of that name.

    Raises:
        BackendError: no backend of that name, or one that is not installed.
    """
    name: str = backend
    if backend == "auto":
        name = os.environ.get(VARIABLE) or "auto"
        if name not in get_args(Backend):
            raise BackendError(f"{VARIABLE} is {name!r:.80}, not one of {', '.join(get_args(Backend))}")
    if name == "auto":
        name = "numba" if _installed() else "numpy"
    if name == "numba":
        return _numba()
    if name == "numpy":
        return _numpy
    if name == "reference":
        return _reference
    raise BackendError(f"backend {name!r:.80} is not one of {', '.join(get_args(Backend))}")


def warm_up() -> None:
    """Compile what the chosen backend compiles, or load it from disk: seconds once, else a fraction of one."""
    choose()


@lru_cache(maxsize=1)
def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def _numba() -> Summariser:
    if not _installed():
        raise BackendError("backend 'numba' needs numba: pip install 'tailwatch-collectors[fast]'")
    from tailwatch_collectors.summary.fused.summarise import summarise_fused

    return summarise_fused


def _numpy(batch: Batch, *, sample: bool, threads: int) -> Summary:
    from tailwatch_collectors.summary.blocked import parts
    from tailwatch_collectors.summary.parts import assemble

    del threads  # one
    return assemble(batch, parts(batch, sample=sample))


def _reference(batch: Batch, *, sample: bool, threads: int) -> Summary:
    from tailwatch_collectors.summary.reference import summarise_slowly

    del threads  # one
    return summarise_slowly(batch, sample=sample)
