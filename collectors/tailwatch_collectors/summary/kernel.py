"""summarise: a batch to its summary, by whichever backend there is.

All backends agree on counts, grids, extremes and picked tokens exactly and on float sums to 1e-12 relative; each is
bit-deterministic in the tokens and their order, whatever the number of threads.
"""

from __future__ import annotations

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary.backend import Backend, choose
from tailwatch_collectors.summary.summary import Summary


def summarise(batch: Batch, *, sample: bool = False, backend: Backend = "auto", threads: int = 1) -> Summary:
    """The mergeable summary of a batch.

    Args:
        batch: a sound batch (`Batch.check` finds nothing).
        sample: also pick SAMPLE_TOKENS at random, for where the tokens themselves are not kept.
        backend: `numba` (the extra `fast`), `numpy`, `reference` (slow, in plain Python), or `auto`: what
            TAILWATCH_SUMMARY_BACKEND names, else numba where it is installed, else numpy.
        threads: used by numba alone, without a difference in the result.

    Raises:
        BackendError: no backend of that name, or one that is not installed.
    """
    return choose(backend)(batch, sample=sample, threads=threads)
