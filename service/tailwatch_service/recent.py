"""Summaries made a moment ago, by their bytes: a step is closed without reading back what was just written.

A memo and nothing more: bytes that are not remembered are read. Equal bytes are equal summaries, to the bit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from tailwatch_collectors import summary as summaries
from tailwatch_collectors.summary import Summary

_REMEMBERED = 128
"""About 40 MB at most."""


class RecentSummaries:
    """Encodes and decodes summaries. Thread-safe."""

    def __init__(self) -> None:
        self._by_bytes: OrderedDict[bytes, Summary] = OrderedDict()
        self._lock = threading.Lock()

    def to_bytes(self, summary: Summary) -> bytes:
        """The summary's serialised form, remembered."""
        data = summaries.to_bytes(summary)
        with self._lock:
            self._by_bytes[data] = summary
            while len(self._by_bytes) > _REMEMBERED:
                self._by_bytes.popitem(last=False)
        return data

    def from_bytes(self, data: bytes) -> Summary:
        """The summary of these bytes, which are forgotten: a step is closed once.

        Raises:
            SummaryError: as `summary.from_bytes`.
        """
        with self._lock:
            known = self._by_bytes.pop(data, None)
        return summaries.from_bytes(data) if known is None else known
