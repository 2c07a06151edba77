"""The quantile function of Student's t: Hill, "Algorithm 396", Communications of the ACM 13 (1970)."""

from __future__ import annotations

import math

import numpy as np

from tailwatch_service.statistics.normal import normal_quantile


def student_quantile(p: float, *, degrees: int) -> float:
    """t with P(T <= t) = p for 1/2 < p < 1; exact for 1 and 2 degrees of freedom, else to 1e-5 of t.

    Args:
        p: the probability.
        degrees: degrees of freedom, at least 1.
    """
    outside = 2 * (1 - p)
    if degrees == 1:
        return 1 / math.tan(outside * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (outside * (2 - outside)) - 2)
    n = degrees
    a = 1 / (n - 0.5)
    b = 48 / (a * a)
    c = ((20_700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = (d * outside) ** (2 / n)
    if y > 0.05 + a:
        x = float(normal_quantile(np.array(outside / 2)))
        square = x * x
        if n < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * square + 6.3) * square + 36) * square + 94.5) / c - square - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
            n + 2
        ) + 1 / y
    return math.sqrt(n * y)
