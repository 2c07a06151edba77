"""The grid: a signed logarithmic histogram on the float32 bits of a value, stored sparsely.

A cell is sign, exponent and the top mantissa bits: no logarithm is taken, integer counts merge exactly in any
order, and a value read back from its cell is off by at most half a cell: 2^-(bits+1), 0.39 % at 7 bits. Cells are
numbered in ascending order of value: below -2^20, the negatives, zero (|x| < 2^-30), the positives, above 2^20.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary.schema import (
    ADVANTAGE_SIGNS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    SEQUENCE_BITS,
    SEQUENCE_GRIDS,
)

_FLOAT32_MANTISSA_BITS = 23
_FLOAT32_BIAS = 127


def cell_count(bits: int) -> int:
    """Cells of a grid with `bits` mantissa bits: 12,803 at 7."""
    return 2 * zero_cell(bits) + 1


def zero_cell(bits: int) -> int:
    """The cell of zero: the middle one."""
    return ((MAX_EXPONENT - MIN_EXPONENT) << bits) + 1


def magnitude_index(x: NDArray[np.float32], bits: int) -> NDArray[np.int32]:
    """Index of |x| among the positive cells: -1 reads zero, (MAX - MIN) << bits is beyond the grid."""
    index: NDArray[np.int32] = x.view(np.int32) & np.int32(0x7FFFFFFF)
    index >>= _FLOAT32_MANTISSA_BITS - bits
    index -= np.int32((MIN_EXPONENT + _FLOAT32_BIAS) << bits)
    return np.clip(index, -1, (MAX_EXPONENT - MIN_EXPONENT) << bits, out=index)


def signed_cell(x: NDArray[np.float32], index: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Cell number from the magnitude index and the sign of x."""
    sign = x.view(np.int32) >> 31  # 0, or -1 where negative: (n ^ -1) + 1 is -n
    cell: NDArray[np.int32] = index + np.int32(1)
    cell ^= sign
    cell -= sign
    cell += np.int32(zero_cell(bits))
    return cell


def cells_of(x: NDArray[np.float64], bits: int) -> NDArray[np.int32]:
    """Cell of every value; must be finite."""
    with np.errstate(over="ignore"):  # beyond float32 is beyond the grid: its last cell
        x32 = np.ascontiguousarray(x, np.float32)
    return signed_cell(x32, magnitude_index(x32, bits), bits)


@lru_cache(maxsize=8)
def cell_edges(bits: int) -> NDArray[np.float64]:
    """[cells + 1] edges in ascending order; the outermost are -inf and inf, zero's are +-2^-30."""
    per_octave = 1 << bits
    fraction = 1 + np.arange(per_octave) / per_octave
    octaves = 2.0 ** np.arange(MIN_EXPONENT, MAX_EXPONENT)
    positive = np.append((octaves[:, None] * fraction).ravel(), 2.0**MAX_EXPONENT)
    edges = np.concatenate(([-np.inf], -positive[::-1], positive, [np.inf]))
    edges.flags.writeable = False
    return edges


@lru_cache(maxsize=8)
def cell_values(bits: int) -> NDArray[np.float64]:
    """[cells] what each cell reads as: its midpoint, 0 for zero's, +-2^20 for the outermost."""
    edges = cell_edges(bits)
    with np.errstate(invalid="ignore"):
        values = (edges[:-1] + edges[1:]) / 2
    values[0], values[-1] = -(2.0**MAX_EXPONENT), 2.0**MAX_EXPONENT
    values.flags.writeable = False
    return values


@lru_cache(maxsize=32)
def sequence_offset(name: str, sign: int) -> int:
    """First key of one of SEQUENCE_GRIDS and one sign of the advantage; after the last one, the end of all keys."""
    before = SEQUENCE_GRIDS[: SEQUENCE_GRIDS.index(name)]
    whole = sum(len(ADVANTAGE_SIGNS) * cell_count(SEQUENCE_BITS[earlier]) for earlier in before)
    return whole + sign * cell_count(SEQUENCE_BITS[name])


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Sparse counts: K occupied cells in ascending order, with one or more counts each."""

    keys: NDArray[np.int64]
    """[K] cell numbers, ascending, unique; slices are offset by multiples of their cell count."""
    counts: NDArray[np.int64]
    """[K, C] counts per cell."""

    @classmethod
    def empty(cls, counts: int = 1) -> Grid:
        """No cell occupied; the identity of `merge`."""
        return cls(np.empty(0, np.int64), np.empty((0, counts), np.int64))

    @classmethod
    def of_dense(cls, dense: NDArray[np.integer]) -> Grid:
        """From a dense vector of counts, [cells]."""
        keys = np.flatnonzero(dense != 0)  # numpy counts booleans many times faster than integers
        return cls(keys.astype(np.int64), dense[keys].astype(np.int64)[:, None])

    @classmethod
    def of_keys(cls, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> Grid:
        """From keys in any order, with repeats; [M] and [M, C]."""
        if len(keys) == 0:
            return cls.empty(counts.shape[1])
        order = np.argsort(keys, kind="stable")  # ascending runs, which grids that are merged consist of, are kept
        ordered = keys[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        # Column by column: numpy adds up rows of one or two numbers many times slower.
        columns = [np.add.reduceat(column[order], starts) for column in np.ascontiguousarray(counts.T)]
        return cls(ordered[starts].astype(np.int64), np.stack(columns, axis=1))

    def merge(self, *others: Grid) -> Grid:
        """Sum of all; exact, in any order."""
        held = [grid for grid in (self, *others) if len(grid.keys)]
        if len(held) <= 1:
            return held[0] if held else self
        return Grid.of_keys(np.concatenate([grid.keys for grid in held]), np.concatenate([g.counts for g in held]))

    def part(self, index: int, *, size: int) -> Grid:
        """The keys in [index * size, (index + 1) * size), moved to 0 .. size - 1."""
        return self.span(index * size, (index + 1) * size)

    def span(self, start: int, end: int) -> Grid:
        """The keys in [start, end), moved to 0 .. end - start - 1."""
        first, last = np.searchsorted(self.keys, (start, end))
        return Grid(self.keys[first:last] - start, self.counts[first:last])
