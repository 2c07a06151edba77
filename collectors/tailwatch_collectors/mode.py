"""The mode: whether a batch travels as tokens or as their summary, settled at the moment it is recorded.

`auto` takes tokens as long as the way to the service keeps up: where what is recorded per second comes near to what
the network has been seen to carry, where the queue is half full, or where the service is away, it takes summaries,
and goes back with hysteresis. Now and then a batch goes as tokens all the same, to measure the way anew.
Pure: times are passed in, seconds of a monotonic clock.
"""

from __future__ import annotations

import threading
from typing import Literal

from tailwatch_collectors.items import Form

Mode = Literal["tokens", "edge", "auto"]

BUSY = 0.7
"""Share of the measured bandwidth above which `auto` takes summaries."""

IDLE = 0.4
"""Share below which it goes back to tokens."""

PROBE_EVERY = 32
"""Of so many batches one goes as tokens, to measure the way."""

_MEMORY = 0.2
_SMALL = 64 * 1024


class Chooser:
    """Chooses the form of every batch."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self._form: Form = "edge" if mode == "edge" else "tokens"
        self._bandwidth: float | None = None
        self._rate: float | None = None
        self._last: float | None = None
        self._since_probe = 0
        self._lock = threading.RLock()

    def sent(self, nbytes: int, seconds: float) -> None:
        """A body of so many bytes took so long to be answered. Small ones say nothing about the bandwidth."""
        if nbytes >= _SMALL and seconds > 0:
            self._bandwidth = _mixed(self._bandwidth, nbytes / seconds)

    def form(self, nbytes: int, *, now: float, fill: float, away: bool) -> Form:
        """The form of a batch of `nbytes` bytes recorded now.

        Args:
            nbytes: size of what was recorded.
            now: the time, seconds.
            fill: how full the queue is, 0 to 1.
            away: whether the service counts as away.
        """
        if self.mode != "auto":
            return self._form
        with self._lock:
            if self._last is not None and now > self._last:
                self._rate = _mixed(self._rate, nbytes / (now - self._last))
            self._last = now
            load = None if not self._bandwidth or self._rate is None else self._rate / self._bandwidth
            if away or fill > 0.5 or (load is not None and load > BUSY):
                self._form = "edge"
            elif fill < 0.25 and (load is None or load < IDLE):
                self._form = "tokens"
            self._since_probe = self._since_probe + 1 if self._form == "edge" else 0
            if self._since_probe >= PROBE_EVERY and not away and fill < 0.25:
                self._since_probe = 0
                return "tokens"
            return self._form


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _MEMORY) * old + _MEMORY * new
