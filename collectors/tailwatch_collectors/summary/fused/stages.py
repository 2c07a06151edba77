"""The stages of one block: one simple loop each, so that the compiler turns it into vector instructions.

Arrays of a block hold its valid tokens alone, one after another: V of them. Every function takes views of the length
it works on.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.fused import layout
from tailwatch_collectors.summary.fused.arithmetic import (
    LOWEST,
    bits32,
    larger,
    log_cosh_half,
    small_terms,
    smaller,
    split,
)
from tailwatch_collectors.summary.fused.jit import counting, fast, strict

LOG_2X: Final = float(schema.LOG_RATIO_THRESHOLDS[schema.RATIO_THRESHOLDS.index(2.0)])
LOG_5X: Final = float(schema.LOG_RATIO_THRESHOLDS[schema.RATIO_THRESHOLDS.index(5.0)])
_TOLERANCE: Final = np.float32(schema.POSITIVE_TOLERANCE)
_LARGEST: Final = np.float32(np.finfo(np.float32).max)
_FILLER: Final = np.float32(schema.FILLER_BELOW)
_ZERO: Final = np.float32(0)
SMALL: Final = 0.5
"""Below it |d| takes the series."""
CLIP: Final = schema.CLUSTER_CLIP
_STRETCH: Final = 64
"""Tokens looked at together where what is sought is rare."""

_SHIFT: Final = 23 - schema.TOKEN_BITS
_BIAS: Final = (schema.MIN_EXPONENT + 127) << schema.TOKEN_BITS
_TOP: Final = (schema.MAX_EXPONENT - schema.MIN_EXPONENT) << schema.TOKEN_BITS
_ZERO_CELL: Final = _TOP + 1
_BIN_SHIFT: Final = schema.TOKEN_BITS - schema.BIN_BITS
_ZERO_BIN_CELL: Final = (_TOP >> _BIN_SHIFT) + 1
_OCTAVE_SHIFT: Final = schema.TOKEN_BITS - schema.OCTAVE_BITS
ZERO_OCTAVE: Final = (_TOP >> _OCTAVE_SHIFT) + 1

SUMS: Final = 20
"""Numbers that `sums` writes."""


@strict()
def unsound(infer: Any, train: Any) -> Any:
    """How many tokens are no pair of log-probs, and how many are above 0."""
    bad, above = 0, 0
    for i in range(len(infer)):
        x, y = infer[i], train[i]
        sound = (x <= _TOLERANCE) & (y <= _TOLERANCE) & (x >= -_LARGEST) & (y >= -_LARGEST)
        bad += np.int32(not sound)
        above += np.int32((x > _ZERO) | (y > _ZERO))
    return bad, above


@strict()
def count_true(flags: Any) -> Any:
    """How many are True."""
    count = 0
    for i in range(len(flags)):
        count += np.int32(flags[i])
    return count


@fast()
def log_ratios(infer: Any, train: Any, d: Any) -> Any:
    """Fill d; its sum."""
    total = 0.0
    for i in range(len(infer)):
        value = np.float64(train[i]) - np.float64(infer[i])
        d[i] = value
        total += value
    return total


@fast()
def extremes(d: Any) -> Any:
    """Smallest and largest."""
    low, high = d[0], d[0]
    for i in range(len(d)):
        low, high = smaller(low, d[i]), larger(high, d[i])
    return low, high


@strict()
def cells(infer: Any, train: Any, d: Any, cell: Any, bin_cell: Any, octave: Any, faults: Any) -> Any:
    """Fill the cells of the three grids from the bits of float32(d); count values that look like filler."""
    identical, filler, outside = 0, 0, 0
    for i in range(len(d)):
        bits = bits32(np.float32(d[i]))
        sign = bits >> np.int32(31)  # 0, or -1 where negative: (n ^ -1) + 1 is -n
        index = ((bits & np.int32(0x7FFFFFFF)) >> np.int32(_SHIFT)) - np.int32(_BIAS)
        index = min(max(index, np.int32(-1)), np.int32(_TOP))
        fine = (((index + np.int32(1)) ^ sign) - sign) + np.int32(_ZERO_CELL)
        coarse = (((index >> np.int32(_BIN_SHIFT)) + np.int32(1)) ^ sign) - sign
        power = (((index >> np.int32(_OCTAVE_SHIFT)) + np.int32(1)) ^ sign) - sign
        cell[i] = np.uint16(fine)
        bin_cell[i] = np.uint16(coarse + np.int32(_ZERO_BIN_CELL))
        octave[i] = np.uint8(power + np.int32(ZERO_OCTAVE))
        outside += np.int32(index == np.int32(_TOP))
    for i in range(len(d)):
        x, y = infer[i], train[i]
        identical += np.int32(x == y)
        filler += np.int32(((x == _ZERO) & (y < _FILLER)) | ((y == _ZERO) & (x < _FILLER)))
    faults[layout.IDENTICAL] += identical
    faults[layout.ZERO_FILLER] += filler
    faults[layout.OUTSIDE_GRID] += outside


@strict()
def probability_bins(infer: Any, first_bin: Any, edge: Any, bins: Any) -> Any:
    """Fill the bin of each token: how many edges it has reached.

    The top bits of a float32 name a range that holds one edge at most: the bin below it, and one comparison.
    """
    for i in range(len(infer)):
        x = min(infer[i], _ZERO)
        key = np.uint32((bits32(x) & np.int32(0x7FFFFFFF)) >> np.int32(layout.EDGE_SHIFT))
        bins[i] = np.uint8(first_bin[key] + np.int32(x >= edge[key]))


@strict()
def fill(infer: Any, train: Any, start: Any, infer_V: Any, train_V: Any, place_V: Any) -> Any:
    """Take over a block in which every token counts."""
    for i in range(len(infer)):
        infer_V[i] = infer[i]
    for i in range(len(infer)):
        train_V[i] = train[i]
    for i in range(len(infer)):
        place_V[i] = start + i


@strict()
def count_cells(cell: Any, counts: Any) -> Any:
    """Count unsigned cell numbers."""
    for i in range(len(cell)):
        counts[cell[i]] += 1


@fast()
def sums(infer: Any, train: Any, d: Any, mean: Any, p: Any, complement: Any, gap: Any, k3: Any, out: Any) -> Any:
    """Sums over the tokens of one sequence in a block, exponentials of d where |d| < 0.5 alone; fill four arrays."""
    infer_sum, train_sum, complement_sum, p_sum, gap_sum, size_sum = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    positive, negative, square, m2 = 0.0, 0.0, 0.0, 0.0
    excess_positive, excess_negative, excess_sq, ratio_abs = 0.0, 0.0, 0.0, 0.0
    k3_sum, k3_inverse, weighted_positive, weighted_negative, reverse_k3, js = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(infer)):
        x = np.float64(infer[i])
        infer_sum += x
        train_sum += np.float64(train[i])
        s, m = split(x if x > LOWEST else LOWEST)
        s = s if x > LOWEST else 0.0
        q = s + s * m
        rest = _complement(s, m)
        rest = rest if rest > 0.0 else 0.0
        complement_sum += rest
        value = d[i]
        deviation = value - mean
        m2 += deviation * deviation
        positive += value if value > 0.0 else 0.0
        negative += -value if value < 0.0 else 0.0
        square += value * value
        small = value if abs(value) < SMALL else 0.0
        up, down, of_js = small_terms(small)
        excess = small + up
        ratio = 1.0 + excess
        weighted = small * ratio
        difference = q * excess
        excess_positive += excess if excess > 0.0 else 0.0
        excess_negative += -excess if excess < 0.0 else 0.0
        excess_sq += excess * excess
        k3_sum += up
        k3_inverse += down
        weighted_positive += weighted if weighted > 0.0 else 0.0
        weighted_negative += -weighted if weighted < 0.0 else 0.0
        reverse_k3 += ratio * down
        js += (1.0 + 0.5 * excess) * of_js
        ratio_abs += abs(small) + (up if up > down else down)
        p_sum += q
        gap_sum += difference
        size_sum += abs(difference)
        p[i] = q
        complement[i] = rest
        gap[i] = difference
        k3[i] = up
    out[0], out[1], out[2], out[3] = excess_positive, excess_negative, excess_sq, ratio_abs
    out[4], out[5], out[6], out[7] = k3_sum, k3_inverse, weighted_positive, weighted_negative
    out[8], out[9] = reverse_k3, js
    out[10], out[11], out[12], out[13], out[14] = positive, negative, square, infer_sum, train_sum
    out[15], out[16], out[17], out[18], out[19] = complement_sum, size_sum, m2, p_sum, gap_sum


@strict()
def _complement(s: Any, m: Any) -> Any:
    """1 - e^x without subtracting from 1 what is near it."""
    return -((s - 1.0) + s * m)


@strict()
def count_beyond(d: Any, threshold: Any) -> Any:
    """How many are above the threshold, and how many below its negative."""
    above, below = np.int64(0), np.int64(0)
    for i in range(len(d)):
        above += np.int64(d[i] > threshold)
        below += np.int64(d[i] < -threshold)
    return above, below


@strict()
def large(d: Any, index: Any) -> Any:
    """Fill `index` with the tokens of |d| >= SMALL, in their order; how many. They are few: stretches are skipped."""
    count = np.uint64(0)
    for start in range(0, len(d), _STRETCH):
        end = min(start + _STRETCH, len(d))
        low, high = extremes(d[start:end])
        if max(high, -low) < SMALL:
            continue
        for i in range(start, end):
            index[count] = i
            count += np.uint64(abs(d[i]) >= SMALL)
    return np.int64(count)


@strict()
def large_terms(d: Any, excess: Any, ratio: Any, k3: Any, js: Any) -> Any:
    """For 0.5 <= |d|, taken at CLUSTER_CLIP where beyond it."""
    for i in range(len(d)):
        x = d[i]
        x = x if x < CLIP else CLIP
        x = x if x > -CLIP else -CLIP
        s, m = split(x)
        w = s + s * m
        e = (s - 1.0) + s * m
        size = abs(x)
        inverse = 1.0 / w
        k3[i] = e - x
        excess[i] = e
        ratio[i] = w
        js[i] = 0.25 * (x * e) - (1.0 + 0.5 * e) * log_cosh_half(size, inverse if x > 0.0 else w)


@fast()
def squares(d: Any, p: Any, gap: Any, mean_d: Any, mean_p: Any, mean_gap: Any, mean_size: Any) -> Any:
    """Sums of squared deviations: of d, of |gap|, of p_train, of p_infer, product of the last two; largest |gap|."""
    of_d, of_size, of_train, of_infer, both, largest = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(d)):
        a = d[i] - mean_d
        size = abs(gap[i])
        largest = larger(largest, size)
        b = size - mean_size
        y = p[i] - mean_p
        x = y + (gap[i] - mean_gap)
        of_d += a * a
        of_size += b * b
        of_train += x * x
        of_infer += y * y
        both += x * y
    return of_d, of_size, of_train, of_infer, both, largest


@fast()
def bucket(d: Any, complement: Any, k3: Any, out: Any) -> Any:
    """Statistics of the tokens of one bucket, into out[STAT]."""
    positive, negative, rest, divergence = 0.0, 0.0, 0.0, 0.0
    low, high, twice, five = d[0], d[0], 0.0, 0.0
    n = len(d)
    for i in range(n):
        value = d[i]
        positive += value if value > 0.0 else 0.0
        negative += -value if value < 0.0 else 0.0
        rest += complement[i]
        divergence += k3[i]
        low, high = smaller(low, value), larger(high, value)
    if high > LOG_2X or low < -LOG_2X:
        for i in range(n):
            twice += 1.0 if abs(d[i]) > LOG_2X else 0.0
            five += 1.0 if abs(d[i]) > LOG_5X else 0.0
    mean = (positive - negative) / n
    m2 = 0.0
    for i in range(n):
        m2 += (d[i] - mean) * (d[i] - mean)
    out[layout.STAT_N] = n
    out[layout.STAT_OUTSIDE_2X], out[layout.STAT_OUTSIDE_5X] = twice, five
    out[layout.STAT_POSITIVE], out[layout.STAT_NEGATIVE], out[layout.STAT_COMPLEMENT] = positive, negative, rest
    out[layout.STAT_MEAN], out[layout.STAT_M2] = mean, m2
    out[layout.STAT_K3], out[layout.STAT_MANTISSA], out[layout.STAT_EXPONENT] = divergence, 0.0, 0.0
    out[layout.STAT_MIN], out[layout.STAT_MAX] = low, high


@counting()
def finite_sum(values: Any, other: Any, valid: Any) -> Any:
    """Count and sum of values - other over valid tokens where both are finite."""
    count, total = 0, 0.0
    for i in range(len(values)):
        x, y = values[i], other[i]
        there = (valid[i] != 0) & (abs(x) <= _LARGEST) & (abs(y) <= _LARGEST)
        count += np.int32(there)
        total += np.float64(x) - np.float64(y) if there else 0.0
    return count, total


@strict()
def scores(train: Any, other: Any, d: Any, out: Any) -> Any:
    """Sums over scores from sum_p2_other; fill `out` with d over their norms.

    Returns:
        Usable tokens, sum of squared norms, sum of Fisher traces, residuals written.
    """
    count, norms, traces, steep = 0, 0.0, 0.0, 0
    for i in range(len(train)):
        x = np.float64(train[i])
        y = np.float64(other[i])
        s, m = split(x if x > LOWEST else LOWEST)
        rest = _complement(s, m)
        rest = rest if rest > 0.0 else 0.0
        # The other probabilities sum to 1 - p, so their squares to no more than its square; float32 may round up.
        if (y >= 0.0) & (y <= rest * rest * (1.0 + 1e-3) + 1e-6):
            norm = rest * rest + y
            count += 1
            norms += norm
            trace = rest * (2.0 - rest) - y
            traces += trace if trace > 0.0 else 0.0
            if norm > schema.MIN_SCORE_NORM_SQ:
                out[steep] = d[i] / math.sqrt(norm)
                steep += 1
    return count, norms, traces, steep


@strict()
def heads(infer: Any, train: Any, x: Any, y: Any, there: Any) -> Any:
    """Take over the first tokens of a sequence; 0 where one does not count."""
    for i in range(len(infer)):
        a, b = infer[i], train[i]
        fine = (a <= _TOLERANCE) & (b <= _TOLERANCE) & (a >= -_LARGEST) & (b >= -_LARGEST)
        there[i] = 1.0 if fine else 0.0
        x[i] = np.float64(a) if fine else 0.0
        y[i] = np.float64(b) if fine else 0.0


@fast()
def mean_and_m2(x: Any) -> Any:
    """Mean, and the sum of squared deviations from it."""
    total = 0.0
    for i in range(len(x)):
        total += x[i]
    mean = total / len(x)
    m2 = 0.0
    for i in range(len(x)):
        m2 += (x[i] - mean) * (x[i] - mean)
    return mean, m2


@fast()
def align_sums(x: Any, y: Any, both: Any, out: Any) -> Any:
    """Add count, sums, squares and product of the pairs that are both valid."""
    n, sx, sy, sxx, syy, sxy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        n += both[i]
        a, b = x[i] * both[i], y[i] * both[i]
        sx += a
        sy += b
        sxx += a * a
        syy += b * b
        sxy += a * b
    out[0] += n
    out[1] += sx
    out[2] += sy
    out[3] += sxx
    out[4] += syy
    out[5] += sxy
