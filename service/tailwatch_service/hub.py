"""The hub: wakes the live streams of this process when a run has a new event.

It carries no events, only the news that there may be some: streams read them from the events table, where other
replicas write too. Any thread may call `wake`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Hub:
    """Wake-ups by run."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once the service is stopping: every stream ends."""
        return self._closed

    @property
    def streams(self) -> int:
        """Streams open now."""
        return sum(map(len, self._waiting.values()))

    def open(self) -> None:
        """Bind to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def wake(self, run_id: str) -> None:
        """Say that a run may have new events. Thread-safe; a hub that is not open passes it over."""
        if self._loop is not None and not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop is gone already
                self._loop.call_soon_threadsafe(self._wake, run_id)

    @contextlib.contextmanager
    def listen(self, run_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the run has news, and when the hub closes. Call on the event loop."""
        bell = asyncio.Event()
        self._waiting.setdefault(run_id, set()).add(bell)
        if self._closed:
            bell.set()
        try:
            yield bell
        finally:
            bells = self._waiting[run_id]
            bells.discard(bell)
            if not bells:
                del self._waiting[run_id]

    def close(self) -> None:
        """End every stream. Call on the event loop."""
        self._closed = True
        for bells in self._waiting.values():
            for bell in bells:
                bell.set()

    def _wake(self, run_id: str) -> None:
        for bell in self._waiting.get(run_id, ()):
            bell.set()
