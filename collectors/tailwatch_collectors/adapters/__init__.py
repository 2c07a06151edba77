"""Adapters: one thin module per framework around the same collector.

    import tailwatch_collectors as tailwatch
    tailwatch.adapters.trl.attach(trainer)

Each has a pure function that turns what the framework holds into keywords of `Collector.record`, and a thin hook
that calls it. Nothing here imports a framework, and no adapter is loaded before it is named.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "areal",
    "ms_swift",
    "nemo_rl",
    "open_instruct",
    "openrlhf",
    "prime_rl",
    "roll",
    "skyrl",
    "slime",
    "tinker",
    "trl",
    "verl",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
