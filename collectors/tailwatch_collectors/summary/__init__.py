"""The mergeable summary: `summarise(batch) -> Summary`, `merge`, and its bytes."""

from tailwatch_collectors.summary.backend import BackendError, warm_up
from tailwatch_collectors.summary.check import SummaryError
from tailwatch_collectors.summary.codec import from_bytes, to_bytes
from tailwatch_collectors.summary.exact import exact_quantiles
from tailwatch_collectors.summary.kernel import summarise
from tailwatch_collectors.summary.summary import Summary, merge

__all__ = [
    "BackendError",
    "Summary",
    "SummaryError",
    "exact_quantiles",
    "from_bytes",
    "merge",
    "summarise",
    "to_bytes",
    "warm_up",
]
