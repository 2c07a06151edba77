"""How the pass is compiled: without the interpreter's lock, kept on disk, and never stale.

numba compares one source file's date and size to decide whether code on disk is still right, and ignores globals and
the functions that are called. Every entry is therefore made inside a function whose closure holds a fingerprint of all
sources and of the schema: numba makes closures part of the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from numba import njit

from tailwatch_collectors.summary import grid, scaled, schema

DEPENDENCIES = (grid, scaled, schema)
"""Modules outside this package that compiled code takes numbers from."""


def _fingerprint() -> int:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.blake2b(digest_size=7)
    for source in (*sources, *(Path(str(module.__file__)) for module in DEPENDENCIES)):
        digest.update(source.read_bytes())
    return int.from_bytes(digest.digest(), "little")


FINGERPRINT: Final = _fingerprint()

_COMMON: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_FAST = {"contract", "reassoc", "nsz", "nnan", "ninf"}


def strict() -> Callable[..., Any]:
    """Every operation in the order written, but for fused multiply-add: for arithmetic that depends on rounding.

    It keeps its order in a `fast` function too: LLVM inlines it with its own flags, which numba's inlining would not.
    """
    decorate: Callable[..., Any] = njit(**_COMMON, **_INNER, fastmath={"contract"})
    return decorate


def counting() -> Callable[..., Any]:
    """Sums in any order; NaN and infinity are what they are: for tokens not checked yet."""
    decorate: Callable[..., Any] = njit(**_COMMON, **_INNER, fastmath={"contract", "reassoc", "nsz"})
    return decorate


def fast() -> Callable[..., Any]:
    """Sums in any order of numbers known to be finite."""
    decorate: Callable[..., Any] = njit(**_COMMON, **_INNER, fastmath=_FAST)
    return decorate


def entry(signature: Any) -> Callable[..., Any]:
    """A function called from Python: compiled for one signature when it is defined, or loaded."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, **_COMMON, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature, **_COMMON)(function)  # no directory may be written to: compiled at every start

    return decorate
