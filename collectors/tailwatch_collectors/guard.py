"""The guard: nothing that goes wrong in here reaches the training loop.

In training an error is swallowed, counted and logged once per place and kind; under pytest it is raised again, so
that no test passes over it (`TAILWATCH_SWALLOW=1` turns that off, for tests of the swallowing itself). Interrupts
are not errors: KeyboardInterrupt and SystemExit always pass.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

logger = logging.getLogger("tailwatch")

MAX_KINDS = 1000
"""Most kinds of trouble that are logged: beyond it they are only counted."""

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Swallows, counts and logs what goes wrong after `connect`."""

    def __init__(self, *, on_error: Callable[[], None]) -> None:
        self._on_error = on_error
        self._seen: set[tuple[str, ...]] = set()

    def __call__(self, place: str) -> AbstractContextManager[None]:
        """A `with` block in which every Exception is swallowed; `place` names it in the log."""
        return _Guarded(self, place)

    def once(self, *key: str, message: str) -> None:
        """Log a warning the first time `key` comes up, and never again."""
        if key not in self._seen and len(self._seen) < MAX_KINDS:
            self._seen.add(key)
            logger.warning("%s (further ones are counted, not logged)", message)

    def caught(self, place: str, error: Exception) -> bool:
        """Count and log an error; True where it is to be swallowed."""
        self._on_error()
        self.once(place, type(error).__name__, _kind(error), message=f"{place}: {type(error).__name__}: {error!s:.500}")
        return not raises()


class _Guarded(AbstractContextManager[None]):
    def __init__(self, guard: Guard, place: str) -> None:
        self._guard = guard
        self._place = place

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return isinstance(error, Exception) and self._guard.caught(self._place, error)


class HasGuard(Protocol):
    """What the methods decorated with `guarded` belong to."""

    @property
    def guard(self) -> Guard:
        """The guard in force."""
        ...


S = TypeVar("S", bound=HasGuard)


def guarded(*, default: T) -> Callable[[Callable[Concatenate[S, P], T]], Callable[Concatenate[S, P], T]]:
    """Decorate a method so that it returns `default` where it would have raised."""

    def decorate(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            with self.guard(method.__name__):
                return method(self, *args, **kwargs)
            return default

        functools.update_wrapper(call, method)
        return call

    return decorate


def _kind(error: Exception) -> str:
    """What tells one refusal from another, without the numbers that differ from batch to batch."""
    found = [f"{one.column}: {one.reason}" for one in getattr(error, "errors", ())]
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", "; ".join(found))[:200]


def raises() -> bool:
    """True where errors are to be seen: under pytest, unless `TAILWATCH_SWALLOW=1`."""
    return "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("TAILWATCH_SWALLOW") != "1"


def shown(value: Any, *, limit: int = 300) -> str:
    """Foreign text on one bounded line, so that a lying service cannot write into the trainer's log."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
