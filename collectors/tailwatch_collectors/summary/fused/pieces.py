"""Pieces: the tokens of one sequence in one block, and what is added up for the sequence as a whole.

Shapes: B sequences, N tokens, V valid tokens of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.fused import layout, stages
from tailwatch_collectors.summary.fused.arithmetic import add_extreme, add_scaled, extreme_k3
from tailwatch_collectors.summary.fused.jit import strict
from tailwatch_collectors.summary.fused.layout import BINS, LEVELS, OCTAVES, SCALED, VALID

_ALIGN = schema.ALIGN_TOKENS
_SHIFTS = schema.ALIGN_SHIFTS
_TOLERANCE = np.float32(schema.POSITIVE_TOLERANCE)
_ZERO = np.float32(0)


@strict()
def compress(
    infer_N: Any, train_N: Any, mask_N: Any, start: Any, first: Any, last: Any, filled: Any,
    infer_V: Any, train_V: Any, place_V: Any, valid: Any, faults: Any,
) -> Any:  # fmt: skip
    """Append the valid tokens of one piece to the block; how many were in the mask, and the block's new length."""
    masked = 0
    for i in range(first, last):
        x, y = infer_N[i], train_N[i]
        inside = mask_N[i] if len(mask_N) else True
        valid[i - start] = 0
        if not inside:
            faults[layout.MASKED_OUT] += 1
            continue
        masked += 1
        fine_x, fine_y = np.isfinite(x), np.isfinite(y)
        if not (fine_x and fine_y):
            faults[layout.NONFINITE_INFER] += not fine_x
            faults[layout.NONFINITE_TRAIN] += not fine_y
            continue
        if x > _TOLERANCE or y > _TOLERANCE:
            faults[layout.INVALID_POSITIVE] += 1
            continue
        faults[layout.POSITIVE] += x > _ZERO or y > _ZERO
        valid[i - start] = 1
        infer_V[filled], train_V[filled], place_V[filled] = x, y, i
        filled += 1
    return masked, filled


@strict()
def align(infer_N: Any, train_N: Any, mask_N: Any, first: Any, last: Any, heads: Any, out: Any) -> Any:
    """Add the head of one sequence to the sums of every shift."""
    width = min(last - first, _ALIGN)
    x, y, there = heads[0], heads[1], heads[2]
    stages.heads(infer_N[first : first + width], train_N[first : first + width], x, y, there)
    if len(mask_N):
        for t in range(width):
            if not mask_N[first + t]:
                x[t], y[t], there[t] = 0.0, 0.0, 0.0
    both = heads[3]
    for row in range(len(_SHIFTS)):
        shift = row + _SHIFTS[0]
        left, right = max(0, -shift), max(0, shift)
        n = width - abs(shift)
        if n <= 0:
            continue
        for t in range(n):
            both[t] = there[left + t] * there[right + t]
        stages.align_sums(x[left : left + n], y[right : right + n], both[:n], out[row])


@strict()
def large_tokens(
    n: Any, d: Any, train: Any, index: Any, work: Any, p: Any, gap: Any, k3: Any,
) -> Any:  # fmt: skip
    """Terms of the n tokens of |d| >= 0.5 in `index`, into the rows of `work`; their gaps and k3 where they stand."""
    for j in range(n):
        work[0, j] = d[index[j]]
    stages.large_terms(work[0, :n], work[1, :n], work[2, :n], work[3, :n], work[4, :n])
    for j in range(n):
        i = index[j]
        if abs(d[i]) <= stages.CLIP:
            gap[i] = p[i] * work[1, j]
            k3[i] = work[3, j]
        else:
            gap[i] = np.exp(np.float64(train[i])) - p[i]
            k3[i] = 0.0


@strict()
def add_large(j: Any, d: Any, gap: Any, work: Any, big: Any, clipped: Any, sums: Any, extreme: Any, row: Any) -> Any:
    """Add one large token to the sums of its piece."""
    target = big
    if abs(d) > stages.CLIP:
        target = clipped
        add_extreme(extreme, d)
        mantissa, exponent = extreme_k3(d)
        add_scaled(row[layout.ROW_MANTISSA :], mantissa, exponent)
    e, w, k3, js = work[1, j], work[2, j], work[3, j], work[4, j]
    x = min(max(d, -stages.CLIP), stages.CLIP)
    inverse = 1.0 / w
    reverse = max(x * e - k3, 0.0)
    target[0] += w
    target[1] += w * w
    if d > 0.0:
        target[2] += e
        target[7] += x * w
    else:
        target[3] -= e
        target[8] -= x * w
    target[4] += e * e
    target[5] += k3
    target[6] += reverse * inverse
    target[9] += reverse
    target[10] += max(js, 0.0)
    target[11] += max(w, inverse)
    sums[16] += abs(gap)
    sums[19] += gap
    row[layout.TERM_OUTSIDE_2X] += abs(d) > stages.LOG_2X
    row[layout.TERM_OUTSIDE_5X] += abs(d) > stages.LOG_5X


@strict()
def finish_piece(
    n: Any, large: Any, sums: Any, big: Any, clipped: Any, low: Any, high: Any, seen: Any, row: Any, total: Any
) -> Any:
    """Add a piece to its sequence and to the chunk: `sums` from the series, `big` from the few large log ratios.

    `clipped` holds what tokens beyond CLUSTER_CLIP add to the sequence's sums alone; `seen` tokens came before.
    """
    small = float(n - large)
    net = sums[0] - sums[1]
    big[0] += small + net  # ratio
    big[1] += small + 2.0 * net + sums[2]  # ratio_sq
    big[2] += sums[0]  # excess_positive
    big[3] += sums[1]
    big[4] += sums[2]  # excess_sq
    big[5] += sums[4]  # k3
    big[6] += sums[5]  # k3_inverse
    big[7] += sums[6]  # reverse_k1_positive
    big[8] += sums[7]
    big[9] += sums[8]  # reverse_k3
    big[10] += sums[9]  # js
    big[11] += small + sums[3]  # ratio_abs
    for q in range(SCALED):
        total[q] += big[q]
    for q in range(5):
        total[SCALED + q] += sums[10 + q]
    row[layout.ROW_K3] += big[5]
    for q in range(SCALED):
        big[q] += clipped[q]
    row[layout.TERM_RATIO] += big[0]
    row[layout.TERM_RATIO_SQ] += big[1]
    row[layout.TERM_EXCESS] += big[2] - big[3]
    row[layout.TERM_EXCESS_ABS] += big[2] + big[3]
    row[layout.TERM_EXCESS_SQ] += big[4]
    row[layout.TERM_K3] += big[5]
    row[layout.TERM_K3_INVERSE] += big[6]
    row[layout.TERM_REVERSE_K1] += big[7] - big[8]
    row[layout.TERM_REVERSE_K3] += big[9]
    row[layout.TERM_JS] += big[10]
    row[layout.TERM_RATIO_ABS] += big[11]
    mean = (sums[10] - sums[11]) / n
    if seen:
        delta = mean - row[layout.TERM_LOG_RATIO] / seen
        row[layout.ROW_M2] += sums[17] + delta * delta * (float(n) * seen / (n + seen))
        row[layout.ROW_MIN] = min(row[layout.ROW_MIN], low)
        row[layout.ROW_MAX] = max(row[layout.ROW_MAX], high)
    else:
        row[layout.ROW_M2], row[layout.ROW_MIN], row[layout.ROW_MAX] = sums[17], low, high
    row[layout.ROW_POSITIVE] += sums[10]
    row[layout.ROW_NEGATIVE] += sums[11]
    row[layout.TERM_LOG_RATIO] = row[layout.ROW_POSITIVE] - row[layout.ROW_NEGATIVE]
    row[layout.TERM_LOG_RATIO_ABS] = row[layout.ROW_POSITIVE] + row[layout.ROW_NEGATIVE]
    row[layout.TERM_LOG_RATIO_SQ] += sums[12]
    row[layout.TERM_INFER] += sums[13]
    row[layout.TERM_TRAIN] += sums[14]
    row[layout.ROW_COMPLEMENT] += sums[15]
    row[layout.TERM_PROB_DIFF] += sums[16]


@strict()
def raise_oldest(place_V: Any, version_N: Any, train_version: Any, row: Any) -> Any:
    """Raise the largest lag of a sequence to that of one piece."""
    oldest = np.int64(-1)
    for i in range(len(place_V)):
        oldest = max(oldest, train_version - version_N[place_V[i]])
    row[layout.ROW_OLDEST] = max(row[layout.ROW_OLDEST], float(oldest + 1))


@strict()
def close_sequence(
    row: Any, count_B2: Any, counts: Any, bins: Any, level: Any, exceed: Any, bin_sq: Any, bucket_SB: Any, octaves: Any
) -> Any:
    """End a sequence: squares of its counts beyond each level and in each bin, its octaves to its buckets."""
    if row < 0:
        return
    tokens = float(count_B2[row, VALID])
    for side in range(2):
        step = 1 if side == 0 else -1
        at = stages.ZERO_OCTAVE
        count = 0
        while at >= layout.FIRST_LEVEL + LEVELS + 1:
            count += counts[stages.ZERO_OCTAVE + step * at]
            at -= 1
        for k in range(LEVELS - 1, -1, -1):
            count += counts[stages.ZERO_OCTAVE + step * at]
            at -= 1
            exceed[side, k, 0] += float(count) * count
            exceed[side, k, 1] += float(count) * tokens
    if level >= layout.WITH_BINS:
        for b in range(BINS):
            bin_sq[b] += float(bins[b]) * bins[b]
    if level >= layout.ALL:
        for s in range(len(bucket_SB)):
            for cell in range(OCTAVES):
                octaves[bucket_SB[s, row], cell] += counts[cell]
    counts[:], bins[:] = 0, 0
