"""Exact quantiles of the log ratio, for offline use: metrics answer from the grid, within 0.39 %.

The grid says in which cell an order statistic lies; only the tokens of those cells, one or two in a hundred, are
collected and sorted. Memory is that of the cells wanted: where all tokens share one cell, that of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import cell_count, cells_of

_CHUNK = 65_536
_CELLS = cell_count(schema.TOKEN_BITS)


def exact_quantiles(batch: Batch, qs: Sequence[float | Fraction], *, by_bin: bool = False) -> NDArray[np.float64]:
    """Order statistics number ceil(q N) of d over the tokens that count.

    Args:
        batch: a sound batch.
        qs: Q shares in [0, 1]; 0 is the minimum.
        by_bin: per bin of the inference probability.

    Returns:
        [Q], or [PROBABILITY_BINS, Q]; NaN where no token counts.

    Raises:
        ValueError: a share outside [0, 1].
    """
    for q in qs:
        if not 0 <= q <= 1:
            raise ValueError(f"{q!r} is not a share in [0, 1]")
    groups = schema.PROBABILITY_BINS if by_bin else 1
    counts_GK = np.zeros((groups, _CELLS), np.int64)
    for d, group in _tokens(batch, by_bin=by_bin):
        key = group * _CELLS + cells_of(d, schema.TOKEN_BITS)
        counts_GK += np.bincount(key, minlength=groups * _CELLS).reshape(groups, _CELLS)
    rank_GQ = np.array([[_rank(q, int(n)) for q in qs] for n in counts_GK.sum(axis=1)], np.int64).reshape(groups, -1)
    before_GK = counts_GK.cumsum(axis=1)
    cell_GQ = np.array([np.searchsorted(before_GK[g], rank_GQ[g]) for g in range(groups)]).reshape(groups, -1)
    held = counts_GK.sum(axis=1) > 0
    wanted_GK = np.zeros((groups, _CELLS), np.bool_)
    for g in np.flatnonzero(held):
        wanted_GK[g, cell_GQ[g]] = True
    values, keys = _collect(batch, wanted_GK, by_bin=by_bin)
    found = np.full((groups, len(qs)), np.nan)
    for g in np.flatnonzero(held):
        for index, (rank, cell) in enumerate(zip(rank_GQ[g], cell_GQ[g], strict=True)):
            first = np.searchsorted(keys, g * _CELLS + cell)
            found[g, index] = values[first + rank - 1 - (before_GK[g, cell] - counts_GK[g, cell])]
    return found if by_bin else found[0]


def _rank(q: float | Fraction, n: int) -> int:
    """ceil(q n), at least 1; a float is the decimal it is written as, so that 0.07 of 100 is 7."""
    share = q if isinstance(q, Fraction) else Fraction(repr(float(q)))
    return max(1, -(-share.numerator * n // share.denominator))


def _collect(
    batch: Batch, wanted_GK: NDArray[np.bool_], *, by_bin: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The tokens of the wanted cells, in order of group, cell and value; and their group * cells + cell."""
    values, keys = [np.empty(0)], [np.empty(0, np.int64)]
    for d, group in _tokens(batch, by_bin=by_bin):
        key = group * _CELLS + cells_of(d, schema.TOKEN_BITS)
        wanted = wanted_GK.ravel()[key]
        values.append(d[wanted])
        keys.append(key[wanted])
    all_values, all_keys = np.concatenate(values), np.concatenate(keys)
    order = np.lexsort((all_values, all_keys))
    return all_values[order], all_keys[order]


def _tokens(batch: Batch, *, by_bin: bool) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """d of the tokens that count, and their group, a chunk at a time."""
    tolerance = np.float32(schema.POSITIVE_TOLERANCE)
    for start in range(0, batch.tokens, _CHUNK):
        span = slice(start, start + _CHUNK)
        infer, train = batch.infer_logprobs_N[span], batch.train_logprobs_N[span]
        counts = np.isfinite(infer) & np.isfinite(train) & (np.fmax(infer, train) <= tolerance)
        if batch.mask_N is not None:
            counts &= batch.mask_N[span]
        infer, train = infer[counts], train[counts]
        group = np.zeros(len(infer), np.int64)
        if by_bin:
            group = np.searchsorted(schema.PROBABILITY_LOG_EDGES, infer, side="right")
        yield train.astype(np.float64) - infer, group
