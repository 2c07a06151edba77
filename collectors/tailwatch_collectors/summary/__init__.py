"""The mergeable summary: `summarise(batch) -> Summary`, `merge`, and its bytes."""

from tailwatch_collectors.summary.check import SummaryError
from tailwatch_collectors.summary.codec import from_bytes, to_bytes
from tailwatch_collectors.summary.kernel import summarise
from tailwatch_collectors.summary.summary import Summary, merge

__all__ = ["Summary", "SummaryError", "from_bytes", "merge", "summarise", "to_bytes"]
