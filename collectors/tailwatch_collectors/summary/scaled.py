"""Sums of exponentials that cannot overflow: float64 mantissas with integer exponents.

value = mantissa * 2^exponent, mantissa 0 or in [0.5, 1): a sum over e^5000 is an ordinary number here. All terms
are non-negative; signed sums are kept as two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LN2_PARTS = (0.6931471824645996, -1.904654323148236e-09, 2.3190468138462996e-17)
"""ln 2 in three: the first has 25 bits and the first two add up to the nearest float64."""
SPLIT_COUNT = 2.0**26
"""Halves of an integer below 2^52 around it have 26 bits each: their products with the first two parts are exact."""
MAX_LOG = 5e14
"""Log ratios saturate here, so that exponents stay exact integers, twice the log ratio's included."""

_MAX_SHIFT = 2_000
"""Beyond this many bits apart the smaller term is zero in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class ScaledSums:
    """An array of non-negative sums, any shape."""

    mantissa: NDArray[np.float64]
    exponent: NDArray[np.int64]

    @classmethod
    def zeros(cls, *shape: int) -> ScaledSums:
        """Empty sums; the identity of `merge`."""
        return cls(np.zeros(shape), np.zeros(shape, np.int64))

    @classmethod
    def of(cls, values: NDArray[np.float64], exponent: NDArray[np.int64] | int = 0) -> ScaledSums:
        """values * 2^exponent, normalised."""
        mantissa, shift = np.frexp(values)
        return cls(mantissa, np.where(mantissa == 0, 0, shift + np.asarray(exponent, np.int64)).astype(np.int64))

    def merge(self, other: ScaledSums) -> ScaledSums:
        """Element-wise sum; bitwise commutative."""
        # A zero must not lift the common exponent: it takes the other's.
        own = np.where(self.mantissa == 0, other.exponent, self.exponent)
        others = np.where(other.mantissa == 0, self.exponent, other.exponent)
        common = np.maximum(own, others)
        total = _shifted(self.mantissa, own - common) + _shifted(other.mantissa, others - common)
        return ScaledSums.of(total, common)

    def value(self, index: int) -> float:
        """One sum as a float; inf where it exceeds float64."""
        try:
            return math.ldexp(float(self.mantissa[index]), int(self.exponent[index]))
        except OverflowError:
            return math.inf

    def log(self, index: int) -> float:
        """Natural logarithm of one sum; -inf where it is zero."""
        mantissa = float(self.mantissa[index])
        return math.log(mantissa) + int(self.exponent[index]) * math.log(2) if mantissa > 0 else -math.inf


def split_exp(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """e^x as (mantissa near 1, exponent)."""
    clipped = np.clip(x, -2 * MAX_LOG, 2 * MAX_LOG)
    exponent = np.rint(clipped / math.log(2))
    # clipped - exponent ln 2 for exponents up to 2^51: what one product rounds off is a whole number of digits there.
    high = np.trunc(exponent / SPLIT_COUNT) * SPLIT_COUNT
    low = exponent - high
    first, second, third = LN2_PARTS
    rest = ((clipped - high * first) - low * first) - high * second
    mantissa = np.exp((rest - low * second) - exponent * third)
    return mantissa, exponent.astype(np.int64)


def sum_scaled(mantissa: NDArray[np.float64], exponent: NDArray[np.int64]) -> ScaledSums:
    """Sum over the last axis of mantissa * 2^exponent; zero where there is nothing to add."""
    if mantissa.shape[-1] == 0:
        return ScaledSums.zeros(*mantissa.shape[:-1])
    # A zero must not lift the common exponent: beside it, terms far below 1 would vanish.
    lowest = exponent.min(axis=-1, keepdims=True)
    largest = np.where(mantissa == 0, lowest, exponent).max(axis=-1, keepdims=True)
    total = _shifted(mantissa, exponent - largest).sum(axis=-1)
    return ScaledSums.of(total, largest[..., 0])


def sum_exp(x: NDArray[np.float64]) -> ScaledSums:
    """Sum over the last axis of e^x."""
    return sum_scaled(*split_exp(x))


def _shifted(mantissa: NDArray[np.float64], shift: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.ldexp(mantissa, np.maximum(shift, -_MAX_SHIFT).astype(np.int32))
