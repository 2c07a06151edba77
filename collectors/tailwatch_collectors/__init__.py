"""Tailwatch's trainer-side SDK: stream per-token log-probs out of a training loop, and never slow it.

    import tailwatch_collectors as tailwatch
    collector = tailwatch.connect(project="math", run="grpo-7b", url="http://127.0.0.1:8321")
    collector.record(step=step, infer_logprobs=..., train_logprobs=..., mask=...)

Importing this package loads nothing: the names below load numpy, pyarrow and httpx when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tailwatch_collectors.errors import BatchError, ConfigurationError, ReadError, TailwatchError, WireError
from tailwatch_collectors.types import BatchMeta

if TYPE_CHECKING:
    from tailwatch_collectors.batch import Batch
    from tailwatch_collectors.collector import Collector, connect
    from tailwatch_collectors.reader import read

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchError",
    "BatchMeta",
    "Collector",
    "ConfigurationError",
    "ReadError",
    "TailwatchError",
    "WireError",
    "__version__",
    "connect",
    "read",
]

_LATER = {"Batch": "batch", "Collector": "collector", "connect": "collector", "read": "reader"}


def __getattr__(name: str) -> Any:
    if name == "adapters":  # `tailwatch.adapters.trl.attach(trainer)`, and none of it loaded before
        return import_module(f"{__name__}.adapters")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
