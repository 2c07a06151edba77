"""What tokens of one sequence having much in common does to a variance, from the summary's sums over sequences.

C sequences with T_i tokens each, N in all; A_i is a sequence's sum of some term, m = sum A / N the metric. The variance
of such a ratio is that of its linearisation, C / (C - 1) * sum (A_i - m T_i)^2 / N^2 (Cochran, Sampling Techniques,
1977, ch. 6 and 9A). The design effect is that variance over the one that independent tokens would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import zero_cell
from tailwatch_service.statistics.student import student_quantile

Float64Array = NDArray[np.float64]

CONFIDENCE = 0.95
_ROUNDING = 2.0**-50
"""What adding up may lose of the sums that a variance is the difference of."""
MIN_BEYOND = 10
"""Tokens on either side of a level from which its design effect is read."""


@dataclass(frozen=True)
class Clustered:
    """A summary's sequences as the unit of sampling; at least two."""

    summary: Summary

    @cached_property
    def sequences(self) -> int:
        """With a valid token."""
        return self.summary.count("clusters")

    @cached_property
    def squared_lengths(self) -> float:
        """Sum of T^2."""
        return float(self.summary.cluster_extras[schema.CLUSTER_EXTRAS.index("TT")])

    @cached_property
    def quantile(self) -> float:
        """Of Student's t, two-sided at CONFIDENCE. Degrees of freedom are those of as many sequences of equal length
        as weigh the same: N^2 / sum T^2."""
        equal = self.summary.tokens / max(self.squared_lengths, 1.0) * self.summary.tokens
        degrees = max(1, min(self.sequences, round(equal)) - 1)
        return student_quantile((1 + CONFIDENCE) / 2, degrees=degrees)

    @cached_property
    def _bessel(self) -> float:
        return self.sequences / (self.sequences - 1)

    def sums(self, term: str) -> tuple[float, float]:
        """(sum A^2, sum A T) of one of CLUSTER_TERMS."""
        square, cross = map(float, self.summary.cluster_sums[schema.CLUSTER_TERMS.index(term)])
        return square, cross

    def residual(self, mean: float, square: float, cross: float) -> float:
        """Sum of (A - m T)^2, never below what rounding leaves of it."""
        longest = mean * mean * self.squared_lengths
        floor = _ROUNDING * (square + longest)
        return max(square - 2 * mean * cross + longest, floor, 0.0)

    def standard_error(self, mean: float, term: str) -> float:
        """Of the mean over tokens of one of CLUSTER_TERMS."""
        return self.spread(self.residual(mean, *self.sums(term)))

    def spread(self, residual: float) -> float:
        """Standard error of a ratio to N whose squared residuals sum to `residual`."""
        return math.sqrt(self._bessel * residual) / self.summary.tokens

    def design_effect(self, share: float, square: float, cross: float) -> float:
        """Of a share of tokens, from 1 to their number; 1 where the share is 0 or 1."""
        tokens = self.summary.tokens
        if not 0 < share < 1:
            return 1.0
        effect = self._bessel * self.residual(share, square, cross) / (tokens * share * (1 - share))
        return max(1.0, effect) if effect < tokens else float(tokens)

    def design_effect_at(self, level: float) -> float:
        """Of the share of tokens beyond a level of d, interpolated between the powers of two it was counted at; where
        none of them divides the tokens, that of sequences whose tokens are all alike."""
        places, effects = self._levels
        if len(places) == 0:
            return max(1.0, min(self.squared_lengths / self.summary.tokens, float(self.summary.tokens)))
        return float(np.interp(_place(level), places, effects))

    @cached_property
    def _levels(self) -> tuple[Float64Array, Float64Array]:
        """Places of the levels with enough tokens on both sides, ascending, and the design effect at each."""
        tokens = self.summary.tokens
        keys, counts = self.summary.grid.keys, self.summary.grid.counts[:, 0]
        bits, zero = schema.TOKEN_BITS, zero_cell(schema.TOKEN_BITS)
        found = []
        for sign, sums in ((-1, self.summary.exceed_lower), (1, self.summary.exceed_upper)):
            for exponent, (square, cross) in zip(schema.EXCEED_EXPONENTS, sums.tolist(), strict=True):
                offset = 1 + ((exponent - schema.MIN_EXPONENT) << bits)
                beyond = int(counts[sign * (keys - zero) >= offset].sum())
                if MIN_BEYOND <= beyond <= tokens - MIN_BEYOND:
                    place = _place(sign * 2.0**exponent)
                    found.append((place, self.design_effect(beyond / tokens, square, cross)))
        found.sort()
        places, effects = np.array(found).reshape(-1, 2).T
        return places, effects

    def design_effect_of(self, tokens: float, squared: float, level: float) -> float:
        """The same among a part of the tokens.

        Args:
            tokens: in the part.
            squared: sum over sequences of the square of their tokens in it.
            level: of d.
        """
        typical = self.squared_lengths / self.summary.tokens
        if typical <= 1 or tokens <= 0:
            return 1.0
        # Tokens of a sequence are taken to be as alike within the part as among all: one correlation, other numbers.
        alike = (self.design_effect_at(level) - 1) / (typical - 1)
        return min(1 + max(0.0, squared / tokens - 1) * min(1.0, alike), tokens)


def _place(level: float) -> float:
    """A level of d on an axis on which its powers of two are evenly spaced."""
    least = 2.0 ** (schema.EXCEED_EXPONENTS[0] - 1)
    return math.copysign(math.log2(max(abs(level), least) / least), level)
