"""Clusters: how much tokens of one sequence go together, from which every interval is made.

Tokens of a sequence share a prompt, a policy version and often a scale of mismatch; an interval that takes them for
independent is far too narrow. Kept are sums over sequences of squares and products of the sequence's own sums (for
the linearised variance of a ratio), and of the number of its tokens beyond a level (for quantiles and shares).

Shapes: B sequences, V valid tokens, G segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import zero_cell

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
IntpArray = NDArray[np.intp]

_LEVELS = len(schema.EXCEED_EXPONENTS)
_FIRST_OCTAVE = schema.EXCEED_EXPONENTS[0] - schema.MIN_EXPONENT
"""Octave cells between the zero cell and the first level."""


@dataclass(slots=True)
class Clusters:
    """Accumulates over chunks of tokens; a sequence may lie in several."""

    tokens_B: Float64Array
    """Valid tokens per sequence."""
    terms_QB: Float64Array
    """[CLUSTER_TERMS, B]"""
    min_B: Float64Array
    """Smallest d of each sequence."""
    max_B: Float64Array
    bin_sq: Float64Array
    """[PROBABILITY_BINS]"""
    exceed: Float64Array
    """[2, EXCEED_EXPONENTS, EXCEED_SUMS]: upper, lower."""
    _open: tuple[int, IntpArray, IntpArray] | None = None
    """The sequence that the next chunk may go on with: its levels and bins so far."""

    @classmethod
    def of(cls, count_B: Int64Array) -> Clusters:
        """No token seen yet of sequences with [B] tokens."""
        return cls(
            count_B.astype(np.float64),
            np.zeros((len(schema.CLUSTER_TERMS), len(count_B))),
            np.full(len(count_B), np.inf),
            np.full(len(count_B), -np.inf),
            np.zeros(schema.PROBABILITY_BINS),
            np.zeros((2, _LEVELS, len(schema.EXCEED_SUMS))),
        )

    def add(self, row_G: Int64Array, sums_G: Mapping[str, Float64Array]) -> None:
        """Add segments to their sequences."""
        first = np.flatnonzero(np.diff(row_G, prepend=-1))
        columns = row_G[first]
        for index, name in enumerate(schema.CLUSTER_TERMS):
            self.terms_QB[index, columns] += np.add.reduceat(sums_G[name], first)
        self.min_B[columns] = np.minimum(self.min_B[columns], np.minimum.reduceat(sums_G["min"], first))
        self.max_B[columns] = np.maximum(self.max_B[columns], np.maximum.reduceat(sums_G["max"], first))

    def add_tokens(self, row_V: Int64Array, octave_V: IntpArray, bin_V: IntpArray) -> None:
        """Count tokens beyond each level, and per bin, in each sequence of a chunk."""
        first, last = int(row_V[0]), int(row_V[-1])
        local_V = row_V - first
        rows = last - first + 1
        levels = np.bincount(local_V * (2 * (_LEVELS + 1)) + _level(octave_V), minlength=rows * 2 * (_LEVELS + 1))
        levels = levels.reshape(rows, 2, _LEVELS + 1)
        bins = np.bincount(local_V * schema.PROBABILITY_BINS + bin_V, minlength=rows * schema.PROBABILITY_BINS)
        bins = bins.reshape(rows, schema.PROBABILITY_BINS)
        if self._open is not None:
            row, levels_before, bins_before = self._open
            if row == first:
                levels[0] += levels_before
                bins[0] += bins_before
            else:
                self._close(np.array([row]), levels_before[None], bins_before[None])
        self._close(np.arange(first, last), levels[:-1], bins[:-1])
        self._open = (last, levels[-1].copy(), bins[-1].copy())

    def finish(self) -> None:
        """Close the last sequence."""
        if self._open is not None:
            row, levels, bins = self._open
            self._close(np.array([row]), levels[None], bins[None])
            self._open = None

    def _close(self, rows: IntpArray, levels: IntpArray, bins: IntpArray) -> None:
        beyond = levels[:, :, :0:-1].cumsum(axis=2)[:, :, ::-1].astype(np.float64)
        self.exceed[:, :, 0] += (beyond * beyond).sum(axis=0)
        self.exceed[:, :, 1] += (beyond * self.tokens_B[rows, None, None]).sum(axis=0)
        counts = bins.astype(np.float64)
        self.bin_sq += (counts * counts).sum(axis=0)

    def term(self, name: str) -> Float64Array:
        """[B] sum over each sequence of one of CLUSTER_TERMS."""
        term_B: Float64Array = self.terms_QB[schema.CLUSTER_TERMS.index(name)]
        return term_B

    @property
    def sums(self) -> Float64Array:
        """[CLUSTER_TERMS, CLUSTER_SUMS]"""
        squares = (self.terms_QB * self.terms_QB).sum(axis=1)
        sums: Float64Array = np.stack((squares, (self.terms_QB * self.tokens_B).sum(axis=1)), axis=1) + 0.0
        return sums

    @property
    def extras(self) -> Float64Array:
        """[CLUSTER_EXTRAS]"""
        both = self.term("ratio") * self.term("ratio_sq")
        return np.array([(self.tokens_B * self.tokens_B).sum(), both.sum()])


def _level(octave: IntpArray) -> IntpArray:
    """Side and level of each token: level 0 is below the first, 1 + k at or beyond level k."""
    offset = octave - zero_cell(schema.OCTAVE_BITS)
    level = np.clip(np.abs(offset) - _FIRST_OCTAVE, 0, _LEVELS)
    signed: IntpArray = np.where(offset < 0, level + _LEVELS + 1, level)
    return signed
