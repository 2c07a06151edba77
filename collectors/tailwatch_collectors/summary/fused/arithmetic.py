"""Exponentials that the compiler can vectorise, to about an ulp: polynomials and bits instead of library calls.

Coefficients interpolate at the Chebyshev nodes of their interval (60 digits, then rounded).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tailwatch_collectors.summary.fused.jit import strict
from tailwatch_collectors.summary.scaled import LN2_PARTS, MAX_LOG, SPLIT_COUNT

_LOG2_E = math.log2(math.e)
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it leaves the nearest integer in the low bits
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
LN2 = math.log(2)
LOWEST = -708.0
"""Below it e^x leaves float64's normal numbers: it reads 0."""
_FIRST, _SECOND, _THIRD = LN2_PARTS


def _cast(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The same bits as another type."""
    to = {types.int64: ir.IntType(64), types.int32: ir.IntType(32), types.float64: ir.DoubleType()}
    return builder.bitcast(args[0], to[signature.return_type])


def _of_float64(_context: Any, value: Any) -> Any:
    return types.int64(value), _cast


def _of_int64(_context: Any, value: Any) -> Any:
    return types.float64(value), _cast


def _of_float32(_context: Any, value: Any) -> Any:
    return types.int32(value), _cast


_bits: Any = intrinsic(_of_float64)
_float64_of: Any = intrinsic(_of_int64)
bits32: Any = intrinsic(_of_float32)
"""The bits of a float32."""


def _reducible(name: str) -> Any:
    """minnum or maxnum of two float64 that are not NaN, flagged so that LLVM vectorises a reduction by it."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        double = ir.DoubleType()
        function = builder.module.declare_intrinsic(
            f"llvm.{name}", (double,), ir.FunctionType(double, (double, double))
        )
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return generate


def _minimum(_context: Any, a: Any, b: Any) -> Any:
    return types.float64(a, b), _reducible("minnum")


def _maximum(_context: Any, a: Any, b: Any) -> Any:
    return types.float64(a, b), _reducible("maxnum")


smaller: Any = intrinsic(_minimum)
"""The smaller of two float64, neither NaN."""
larger: Any = intrinsic(_maximum)
"""The larger of two float64, neither NaN."""


@strict()
def split(x: Any) -> Any:
    """(s, m) with e^x = s (1 + m), s a power of two, |x| <= 708: e^x = s + s m and expm1(x) = (s - 1) + s m."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    q = 2.510038549551032e-08
    q = q * r + 2.7620088445409746e-07
    q = q * r + 2.7557268459997064e-06
    q = q * r + 2.4801521295954376e-05
    q = q * r + 0.00019841269863053618
    q = q * r + 0.0013888888917213717
    q = q * r + 0.008333333333330062
    q = q * r + 0.04166666666662413
    q = q * r + 0.16666666666666669
    q = q * r + 0.5000000000000001
    return _float64_of((_bits(shifted) + 1023) << 52), r + r * r * q


@strict()
def small_terms(d: Any) -> Any:
    """For |d| < 0.5: k3, the k3 of -d, and js / (1 + expm1(d) / 2); none subtracts numbers that are close.

    e^d - 1 - d = d^2 (E + d O) with E, O of d^2, and x tanh x - ln cosh x is even in x = d/2.
    """
    z = d * d
    even = 2.0962955815976076e-09
    even = even * z + 2.7557076636642725e-07
    even = even * z + 2.4801587616145414e-05
    even = even * z + 0.001388888888870455
    even = even * z + 0.04166666666666706
    even = even * z + 0.5
    odd = 2.5152671816138696e-08
    odd = odd * z + 2.7557099105878018e-06
    odd = odd * z + 0.00019841270037858157
    odd = odd * z + 0.008333333333271891
    odd = odd * z + 0.16666666666666696
    js = 1.863104578226485e-07
    js = js * z - 1.977718588914716e-06
    js = js * z + 1.922024407002053e-05
    js = js * z - 0.00018446171967558388
    js = js * z + 0.0017361111075422742
    js = js * z - 0.015624999999944312
    js = js * z + 0.12499999999999986
    return z * even + z * odd * d, z * even - z * odd * d, z * js


@strict()
def log_cosh_half(size: Any, inverse: Any) -> Any:
    """ln cosh(size / 2) where size >= 0.5 and inverse = e^-size: size/2 + log1p(inverse) - ln 2."""
    u = inverse / (2.0 + inverse)
    z = u * u
    q = 0.07358457759295141
    q = q * z + 0.06509277666440581
    q = q * z + 0.0770116207882641
    q = q * z + 0.09090621303238075
    q = q * z + 0.11111116581082085
    q = q * z + 0.14285714227469354
    q = q * z + 0.20000000000310106
    q = q * z + 0.333333333333327
    q = q * z + 1.0
    return 0.5 * size + 2.0 * u * q - LN2


@strict()
def split_exp(x: Any) -> Any:
    """e^x as (mantissa near 1, exponent), for any x: `scaled.split_exp`, step by step."""
    bounded = min(max(x, -2 * MAX_LOG), 2 * MAX_LOG)
    n = np.rint(bounded / LN2)
    high = np.trunc(n / SPLIT_COUNT) * SPLIT_COUNT
    low = n - high
    rest = ((bounded - high * _FIRST) - low * _FIRST) - high * _SECOND
    return math.exp((rest - low * _SECOND) - n * _THIRD), n


@strict()
def add_scaled(total: Any, mantissa: Any, exponent: Any) -> Any:
    """Add mantissa * 2^exponent to total = [mantissa, exponent]."""
    if mantissa == 0.0:
        return
    if total[0] == 0.0:
        total[0], total[1] = mantissa, exponent
    elif exponent > total[1]:
        total[0] = math.ldexp(total[0], int(max(total[1] - exponent, -2000.0))) + mantissa
        total[1] = exponent
    else:
        total[0] += math.ldexp(mantissa, int(max(exponent - total[1], -2000.0)))


@strict()
def extreme_k3(d: Any) -> Any:
    """k3 of one log ratio beyond 150 as (mantissa, exponent)."""
    size = min(abs(d), MAX_LOG)
    if d > 0:
        return split_exp(size)
    return size - 1.0, 0.0


@strict()
def add_extreme(total: Any, d: Any) -> Any:
    """Add the terms of TOKEN_SCALED for |d| > 150 to total[terms, 2]: each one's leading term, exact there."""
    size = min(abs(d), MAX_LOG)
    m, e = split_exp(size)
    m2, e2 = split_exp(2.0 * size)
    i, ie = split_exp(-size)
    i2, ie2 = split_exp(-2.0 * size)
    if d > 0:
        add_scaled(total[0], m, e)  # ratio
        add_scaled(total[1], m2, e2)  # ratio_sq
        add_scaled(total[2], m, e)  # excess_positive
        add_scaled(total[4], m2, e2)  # excess_sq
        add_scaled(total[5], m, e)  # k3
        add_scaled(total[6], size - 1.0, 0.0)  # k3_inverse
        add_scaled(total[7], m * size, e)  # reverse_k1_positive
        add_scaled(total[9], m * (size - 1.0), e)  # reverse_k3
        add_scaled(total[10], m * (LN2 / 2), e)  # js
    else:
        add_scaled(total[0], i, ie)
        add_scaled(total[1], i2, ie2)
        add_scaled(total[3], 1.0, 0.0)  # excess_negative
        add_scaled(total[4], 1.0, 0.0)
        add_scaled(total[5], size - 1.0, 0.0)
        add_scaled(total[6], m, e)
        add_scaled(total[8], i * size, ie)  # reverse_k1_negative
        add_scaled(total[9], 1.0, 0.0)
        add_scaled(total[10], LN2 / 2, 0.0)
    add_scaled(total[11], m, e)  # ratio_abs
