"""SIGTERM: what is in memory goes to disk before the trainer's own handler, or the default, takes its course.

Installed once per process, from the main thread, by the first `connect` that asks for it. The handler found then is
called afterwards as if it had been called first; the default effect is restored and the signal sent again, so that
the exit status is what it was. A SIGTERM that is ignored, or handled outside Python, is left alone, and a handler
installed later replaces this one as usual.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Watch:
    """Calls back on SIGTERM, then does what would have happened anyway."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._previous: Any = None
        self._installed = False
        self._busy = False

    def install(self) -> bool:
        """Put the handler in place, once; False where it cannot or need not be."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            return False
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None or previous is signal.SIG_IGN:
            return False
        self._previous, self._installed = previous, True
        signal.signal(signal.SIGTERM, self._handle)
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._busy:  # a second SIGTERM does not wait for the first one's flush
            self._busy = True
            try:
                self._callback()
            finally:
                self._busy = False
        if callable(self._previous):
            self._previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
