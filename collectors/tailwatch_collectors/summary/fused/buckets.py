"""Statistics of buckets as rows of numbers, added up one by one in a fixed order."""

from __future__ import annotations

from typing import Any

from tailwatch_collectors.summary.fused import layout
from tailwatch_collectors.summary.fused.arithmetic import add_scaled
from tailwatch_collectors.summary.fused.jit import strict


@strict()
def add_stat(total: Any, more: Any) -> Any:
    """Add one row of STAT numbers to another; means and squares after Chan, Golub & LeVeque."""
    n, m = total[layout.STAT_N], more[layout.STAT_N]
    if m == 0.0:
        return
    if n == 0.0:
        for i in range(layout.STAT):
            total[i] = more[i]
        return
    both = n + m
    delta = more[layout.STAT_MEAN] - total[layout.STAT_MEAN]
    mean = (n * total[layout.STAT_MEAN] + m * more[layout.STAT_MEAN]) / both
    total[layout.STAT_M2] += more[layout.STAT_M2] + delta * delta * (n * m / both)
    total[layout.STAT_MEAN] = mean
    total[layout.STAT_N] = both
    total[layout.STAT_OUTSIDE_2X] += more[layout.STAT_OUTSIDE_2X]
    total[layout.STAT_OUTSIDE_5X] += more[layout.STAT_OUTSIDE_5X]
    total[layout.STAT_POSITIVE] += more[layout.STAT_POSITIVE]
    total[layout.STAT_NEGATIVE] += more[layout.STAT_NEGATIVE]
    total[layout.STAT_COMPLEMENT] += more[layout.STAT_COMPLEMENT]
    total[layout.STAT_K3] += more[layout.STAT_K3]
    add_scaled(total[layout.STAT_MANTISSA :], more[layout.STAT_MANTISSA], more[layout.STAT_EXPONENT])
    total[layout.STAT_MIN] = min(total[layout.STAT_MIN], more[layout.STAT_MIN])
    total[layout.STAT_MAX] = max(total[layout.STAT_MAX], more[layout.STAT_MAX])


@strict()
def add_moments(total: Any, more: Any) -> Any:
    """Add one row of MOMENT numbers to another."""
    n, m = total[0], more[0]
    if m == 0.0:
        return
    if n == 0.0:
        for i in range(layout.MOMENT):
            total[i] = more[i]
        return
    both = n + m
    share = n * m / both
    delta_d, delta_gap = more[1] - total[1], more[3] - total[3]
    delta_train, delta_infer = more[5] - total[5], more[6] - total[6]
    total[2] += more[2] + delta_d * delta_d * share
    total[4] += more[4] + delta_gap * delta_gap * share
    total[7] += more[7] + delta_train * delta_train * share
    total[8] += more[8] + delta_infer * delta_infer * share
    total[9] += more[9] + delta_train * delta_infer * share
    for mean in (1, 3, 5, 6):
        total[mean] = (n * total[mean] + m * more[mean]) / both
    total[0] = both
    total[10] = max(total[10], more[10])


@strict()
def add_mean(total: Any, n: Any, mean: Any, m2: Any) -> Any:
    """Add to total = [count, mean, squared deviations]."""
    if n == 0.0:
        return
    both = total[0] + n
    delta = mean - total[1]
    total[2] += m2 + delta * delta * (total[0] * n / both)
    total[1] = mean if total[0] == 0.0 else (total[0] * total[1] + n * mean) / both
    total[0] = both


@strict()
def rows_to_buckets(rows_BQ: Any, count_B2: Any, code_B: Any, stats_RS: Any) -> Any:
    """Add up sequences by the code of a property, in their order."""
    row = stats_RS[0].copy()
    for b in range(len(code_B)):
        n = float(count_B2[b, layout.VALID])
        if n == 0.0:
            continue
        one = rows_BQ[b]
        row[layout.STAT_N] = n
        row[layout.STAT_OUTSIDE_2X] = one[layout.TERM_OUTSIDE_2X]
        row[layout.STAT_OUTSIDE_5X] = one[layout.TERM_OUTSIDE_5X]
        row[layout.STAT_POSITIVE] = one[layout.ROW_POSITIVE]
        row[layout.STAT_NEGATIVE] = one[layout.ROW_NEGATIVE]
        row[layout.STAT_COMPLEMENT] = one[layout.ROW_COMPLEMENT]
        row[layout.STAT_MEAN] = one[layout.TERM_LOG_RATIO] / n
        row[layout.STAT_M2] = one[layout.ROW_M2]
        row[layout.STAT_K3] = one[layout.ROW_K3]
        row[layout.STAT_MANTISSA] = one[layout.ROW_MANTISSA]
        row[layout.STAT_EXPONENT] = one[layout.ROW_EXPONENT]
        row[layout.STAT_MIN] = one[layout.ROW_MIN]
        row[layout.STAT_MAX] = one[layout.ROW_MAX]
        add_stat(stats_RS[code_B[b]], row)
