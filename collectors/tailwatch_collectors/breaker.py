"""The circuit breaker: when the next request may go to a service that fails, and whether it counts as away.

    closed     requests go; after a failure the next waits, exponentially longer, with full jitter
    open       a few failures in a row, or the service asked to be left alone: nothing goes until the wait is over
    half open  the wait is over: one request goes, and what becomes of it closes or opens the breaker

Pure: time is passed in, in seconds of a monotonic clock.
"""

from __future__ import annotations

import random

FIRST_BACKOFF = 0.25
"""Longest first wait before sending again, seconds; it doubles with every failure."""

LAST_BACKOFF = 30.0
"""Longest wait of the backoff, seconds, and the pace while the key is refused."""

CLOSING_BACKOFF = 0.5
"""Longest wait of the backoff once `close` has been called, seconds."""

MAX_RETRY_AFTER = 120.0
"""Longest wait a service may ask for, seconds."""

OPENS_AFTER = 3
"""Failures in a row after which the service counts as away."""

_MAX_DOUBLINGS = 20


class Breaker:
    """Counts failures in a row and says how long to wait."""

    def __init__(self) -> None:
        self.failures = 0
        """Failures in a row."""
        self.opened = 0
        """Times it has opened."""
        self._asked = False
        # Not the global generator: the trainer's random numbers are its own.
        self._random = random.Random()  # noqa: S311  # jitter, no secret

    @property
    def open(self) -> bool:
        """True while the service counts as away: what waits is better kept on disk."""
        return self._asked or self.failures >= OPENS_AFTER

    def succeeded(self) -> None:
        """A request was answered."""
        self.failures = 0
        self._asked = False

    def failed(self, *, retry_after: float | None = None, slowly: bool = False, closing: bool = False) -> float:
        """A request was not answered, or asked us to wait; how long to wait, seconds.

        Args:
            retry_after: what the service asked for.
            slowly: it will not get better soon: the longest wait at once.
            closing: little time is left: short waits.
        """
        was_open = self.open
        self.failures += 1
        self._asked = retry_after is not None and retry_after > FIRST_BACKOFF
        self.opened += self.open and not was_open
        if retry_after is not None:
            return min(retry_after, MAX_RETRY_AFTER)
        if slowly:
            return LAST_BACKOFF
        longest = CLOSING_BACKOFF if closing else LAST_BACKOFF
        return self._random.uniform(0.0, min(longest, FIRST_BACKOFF * 2 ** min(self.failures - 1, _MAX_DOUBLINGS)))
