"""Sums of exponentials that cannot overflow: float64 mantissas with integer exponents.

value = mantissa * 2^exponent, mantissa 0 or in [0.5, 1): a sum over e^5000 is an ordinary number here. All terms
are non-negative; signed sums are kept as two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
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
    mantissa = np.exp((clipped - exponent * _LN2_HIGH) - exponent * _LN2_LOW)
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
