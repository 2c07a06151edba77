"""The pass over one chunk of whole sequences: blocks of tokens through the stages, each number added where it belongs.

A block is cut into pieces, one per sequence that has tokens in it, and a piece into segments, in which no property of
the tokens changes. Pieces give the sums of their sequences, segments and probability bins those of the buckets.

Shapes: B sequences, N tokens, P properties known per token, S per sequence, C chunks, R buckets, V tokens of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.fused import layout, stages
from tailwatch_collectors.summary.fused.arithmetic import add_extreme, add_scaled, extreme_k3
from tailwatch_collectors.summary.fused.buckets import add_mean, add_moments, add_stat, rows_to_buckets
from tailwatch_collectors.summary.fused.jit import FINGERPRINT, entry, strict
from tailwatch_collectors.summary.fused.layout import (
    BIN_CELLS,
    BINS,
    BLOCK,
    CELLS,
    LEVELS,
    MASKED,
    OCTAVES,
    PICKS,
    POSITIONS,
    SCALED,
    VALID,
)  # fmt: skip

_ALIGN = schema.ALIGN_TOKENS
_SHIFTS = schema.ALIGN_SHIFTS
_THRESHOLDS = len(schema.RATIO_THRESHOLDS)
_TOLERANCE = np.float32(schema.POSITIVE_TOLERANCE)
_ZERO = np.float32(0)


@strict()
def _compress(
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
def _align(infer_N: Any, train_N: Any, mask_N: Any, first: Any, last: Any, heads: Any, out: Any) -> Any:
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
def _thresholds(d: Any, low: Any, high: Any, thresholds: Any, passed: Any) -> Any:
    """Count the tokens beyond each threshold, at each end: most blocks reach only the first few."""
    for k in range(_THRESHOLDS):
        if max(high, -low) <= thresholds[k]:
            break
        above, below = stages.count_beyond(d, thresholds[k])
        passed[0, k] += above
        passed[1, k] += below


@strict()
def _pick(d: Any, place_V: Any, sign: Any, values: Any, places: Any, count: Any) -> Any:
    """Keep the PICKS highest of sign * d seen so far, the highest first; equal ones in the order of their places."""
    for start in range(0, len(d), 64):
        end = min(start + 64, len(d))
        bound = values[PICKS - 1] if count == PICKS else -np.inf
        low, high = stages.extremes(d[start:end])
        if (high if sign > 0 else -low) <= bound:
            continue
        for i in range(start, end):
            value = sign * d[i]
            if count == PICKS and value <= values[PICKS - 1]:
                continue
            at = min(count, PICKS - 1)
            while at > 0 and values[at - 1] < value:
                values[at], places[at] = values[at - 1], places[at - 1]
                at -= 1
            values[at], places[at] = value, place_V[i]
            count = min(count + 1, PICKS)
    return count


@strict()
def _close(
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


@strict()
def _finish_piece(
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
def _position_bucket(position: Any) -> Any:
    """floor(log2 t); 0 and 1 share a bucket."""
    bucket = 0
    while position > 1:
        position >>= 1
        bucket += 1
    return min(bucket, POSITIONS - 1)


@strict()
def _sign_code(advantage: Any) -> Any:
    """Index into ADVANTAGE_SIGNS."""
    if not np.isfinite(advantage):
        return 3
    return 0 if advantage < 0 else (2 if advantage > 0 else 1)


@strict()
def _lag_code(lag: Any, edges: Any) -> Any:
    """Index into LAG_LABELS of a known lag."""
    if lag < 0:
        return schema.LAG_NEGATIVE
    bucket = len(edges) - 1
    while lag < edges[bucket]:
        bucket -= 1
    return bucket


@strict()
def _codes(
    place_V: Any, advantage_N: Any, version_N: Any, turn_N: Any, train_version: Any, lag_edges: Any, code_PV: Any,
    joint_V: Any, lag_counts: Any, lags: Any,
) -> Any:  # fmt: skip
    """Fill the codes of what is known per token, and one number that differs where any of them does; count lags."""
    n = len(place_V)
    joint_V[:n] = 0
    if len(advantage_N):
        for i in range(n):
            code = _sign_code(advantage_N[place_V[i]])
            code_PV[layout.BY_ADVANTAGE, i] = code
            joint_V[i] += code
    if len(turn_N):
        for i in range(n):
            turn = turn_N[place_V[i]]
            code = layout.LAST_TURN + 1 if turn < 0 else min(turn, layout.LAST_TURN)
            code_PV[layout.BY_TURN, i] = code
            joint_V[i] += 4 * code
    i = 0
    while len(version_N) and i < n:
        # Versions seldom change: one look-up for a run of equal ones.
        version = version_N[place_V[i]]
        lag = train_version - version
        code = _lag_code(lag, lag_edges)
        first = i
        while i < n and version_N[place_V[i]] == version:
            code_PV[layout.BY_LAG, i] = code
            joint_V[i] += 64 * code
            i += 1
        if lag >= 0:
            lag_counts[min(lag, schema.MAX_LAG_CELL)] += i - first
            lags[0] += float(lag) * (i - first)
            lags[1] = min(lags[1], float(lag))
            lags[2] = max(lags[2], float(lag))


@strict()
def _oldest(place_V: Any, version_N: Any, train_version: Any, row: Any) -> Any:
    """Raise the largest lag of a sequence to that of one piece."""
    oldest = np.int64(-1)
    for i in range(len(place_V)):
        oldest = max(oldest, train_version - version_N[place_V[i]])
    row[layout.ROW_OLDEST] = max(row[layout.ROW_OLDEST], float(oldest + 1))


@strict()
def _segments(
    first: Any, last: Any, start_N: Any, place_V: Any, code_PV: Any, joint_V: Any, base_P: Any,
    d: Any, complement: Any, k3: Any, octave: Any, one: Any, stats: Any, octaves: Any,
) -> Any:  # fmt: skip
    """Cut a piece into segments and add each to its buckets: of position, and of every property known per token."""
    i = first
    while i < last:
        bucket = _position_bucket(place_V[i] - start_N)
        limit = start_N + (2 << bucket) if bucket < POSITIONS - 1 else place_V[last - 1] + 1
        # Places rise by one at least: all tokens before `limit` lie before this.
        reach = min(last, i + (limit - place_V[i]))
        while place_V[reach - 1] >= limit:
            reach -= 1
        end, joint = i + 1, joint_V[i]
        while end < reach and joint_V[end] == joint:
            end += 1
        stages.bucket(d[i:end], complement[i:end], k3[i:end], one)
        add_stat(stats[bucket], one)
        stages.count_cells(octave[i:end], octaves[bucket])
        for p in range(layout.PROPERTIES):
            if base_P[p] >= 0:
                target = base_P[p] + code_PV[p, i]
                add_stat(stats[target], one)
                stages.count_cells(octave[i:end], octaves[target])
        i = end


@strict()
def _bins(
    n: Any, bins: Any, d: Any, complement: Any, k3: Any, bin_cell: Any, sorted_d: Any, sorted_c: Any, sorted_k: Any,
    one: Any, stats: Any, bin_grid: Any,
) -> Any:  # fmt: skip
    """Sort the block by probability bin, and add up each bin's run."""
    begin = np.zeros(BINS + 1, np.int64)
    stages.count_cells(bins[:n], begin[1:])
    for b in range(BINS):
        begin[b + 1] += begin[b]
    at = begin.astype(np.uint64)
    for i in range(n):
        b = bins[i]
        j = at[b]
        at[b] = j + np.uint64(1)
        sorted_d[j], sorted_c[j], sorted_k[j] = d[i], complement[i], k3[i]
    for i in range(n):
        bin_grid[np.uint32(bins[i]) * np.uint32(BIN_CELLS) + np.uint32(bin_cell[i])] += 1
    for b in range(BINS):
        i, end = begin[b], begin[b + 1]
        if i < end:
            stages.bucket(sorted_d[i:end], sorted_c[i:end], sorted_k[i:end], one)
            add_stat(stats[b], one)


@strict()
def _large(
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
def _add_large(j: Any, d: Any, gap: Any, work: Any, big: Any, clipped: Any, sums: Any, extreme: Any, row: Any) -> Any:
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
def _extras(
    n: Any, start: Any, kept: Any, valid: Any, place_V: Any, train_V: Any, d: Any, buffer: Any, residual: Any,
    post_N: Any, mask_N: Any, entropy_N: Any, infer_entropy_N: Any, p2_N: Any, ids_N: Any, train_ids_N: Any,
    faults: Any, extra: Any,
) -> Any:  # fmt: skip
    """The optional columns of one block of n tokens received, `kept` of them valid."""
    span = slice(start, start + n)
    if len(post_N):
        for i in range(n):
            post = post_N[start + i]
            faults[layout.KEPT_POST] += post and valid[i] != 0
            faults[layout.POST_OUTSIDE] += post and len(mask_N) > 0 and not mask_N[start + i]
        faults[layout.WITH_POST] += kept
    if len(ids_N) and len(train_ids_N):
        faults[layout.IDS_COMPARED] += kept
        for i in range(n):
            faults[layout.IDS_MISMATCHED] += valid[i] != 0 and ids_N[start + i] != train_ids_N[start + i]
    zeros = np.zeros(n, np.float32) if len(entropy_N) or len(infer_entropy_N) else np.zeros(0, np.float32)
    if len(entropy_N):
        count, total = stages.finite_sum(entropy_N[span], zeros, valid[:n])
        extra[0] += count
        extra[1] += total
    if len(infer_entropy_N):
        count, total = stages.finite_sum(infer_entropy_N[span], zeros, valid[:n])
        extra[2] += count
        extra[3] += total
    if len(entropy_N) and len(infer_entropy_N):
        count, total = stages.finite_sum(entropy_N[span], infer_entropy_N[span], valid[:n])
        extra[4] += count
        extra[5] += total
    if len(p2_N) and kept:
        for i in range(kept):
            buffer[i] = p2_N[place_V[i]]
        count, norms, traces, steep = stages.scores(train_V[:kept], buffer[:kept], d[:kept], residual)
        extra[6] += count
        extra[7] += norms
        extra[8] += traces
        if steep:
            mean, m2 = stages.mean_and_m2(residual[:steep])
            add_mean(extra[9:12], float(steep), mean, m2)


@strict()
def _pass_chunk(
    infer_N: Any, train_N: Any, mask_N: Any, post_N: Any, entropy_N: Any, infer_entropy_N: Any, p2_N: Any,
    ids_N: Any, train_ids_N: Any,
    advantage_N: Any, version_N: Any, turn_N: Any, train_version: Any, base_P: Any, sign_B: Any, bucket_SB: Any,
    offsets_B1: Any, lag_edges: Any, first_bin: Any, edges: Any, thresholds: Any,
    level: Any, chunk: Any, first_row: Any, last_row: Any,
    rows_BQ: Any, count_B2: Any,
    total_C: Any, extreme_C: Any, moment_C: Any, align_C: Any,
    extra_C: Any, exceed_C: Any, bin_sq_C: Any, stats_C: Any,
    sign_grid: Any, bin_grid: Any, octaves: Any, passed: Any, faults: Any,
    pick_values: Any, pick_places: Any, pick_counts: Any, lag_counts: Any,
) -> None:  # fmt: skip
    """Add the sequences first_row .. last_row - 1 to everything."""
    total, extreme, moment, extra = total_C[chunk], extreme_C[chunk], moment_C[chunk], extra_C[chunk]
    exceed, bin_sq = exceed_C[chunk], bin_sq_C[chunk]
    bin_stats, stats = stats_C[chunk, :BINS], stats_C[chunk, BINS:]
    infer_V, train_V = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    place_V, valid = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint8)
    d, p, complement = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    gap, k3, residual = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    sorted_d, sorted_c, sorted_k = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    cell, bin_cell, octave = np.empty(BLOCK, np.uint16), np.empty(BLOCK, np.uint16), np.empty(BLOCK, np.uint8)
    code_PV, joint_V = np.empty((layout.PROPERTIES, BLOCK), np.int8), np.empty(BLOCK, np.int32)
    bins, buffer = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.float32)
    large = np.empty(BLOCK + 1, np.int64)
    work = np.empty((5, BLOCK))
    piece_row, piece_end, piece_mean = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64), np.empty(BLOCK)
    sums, big, clipped, one = np.empty(stages.SUMS), np.empty(SCALED), np.empty(SCALED), np.empty(layout.STAT)
    moments = np.empty(layout.MOMENT)
    heads = np.empty((4, _ALIGN))
    open_octaves, open_bins = np.zeros(OCTAVES, np.int32), np.zeros(BINS, np.int32)
    open_row = -1

    optional = len(post_N) + len(ids_N) + len(entropy_N) + len(infer_entropy_N) + len(p2_N) > 0
    row = first_row
    last_token = offsets_B1[last_row]
    for start in range(offsets_B1[first_row], last_token, BLOCK):
        end = min(start + BLOCK, last_token)
        n = end - start
        # Which tokens count, and the pieces they form.
        bad, positive = stages.unsound(infer_N[start:end], train_N[start:end])
        clean = bad == 0 and (len(mask_N) == 0 or stages.count_true(mask_N[start:end]) == n)
        pieces, kept = 0, 0
        if clean:
            stages.fill(infer_N[start:end], train_N[start:end], start, infer_V, train_V, place_V)
            if optional:
                valid[:n] = 1
            faults[layout.POSITIVE] += positive
        while row < last_row and offsets_B1[row] < end:
            if offsets_B1[row] >= start:
                _align(infer_N, train_N, mask_N, offsets_B1[row], offsets_B1[row + 1], heads, align_C[chunk])
            first, last = max(offsets_B1[row], start), min(offsets_B1[row + 1], end)
            before = kept
            if clean:
                masked = last - first
                kept += masked
            else:
                masked, kept = _compress(
                    infer_N, train_N, mask_N, start, first, last, kept,
                    infer_V, train_V, place_V, valid, faults,
                )  # fmt: skip
            count_B2[row, MASKED] += masked
            if kept > before:
                piece_row[pieces], piece_end[pieces] = row, kept
                pieces += 1
            if offsets_B1[row + 1] > end:
                break
            row += 1
        if optional:
            if kept:
                stages.log_ratios(infer_V[:kept], train_V[:kept], d[:kept])
            _extras(
                n, start, kept, valid, place_V, train_V, d, buffer, residual,
                post_N, mask_N, entropy_N, infer_entropy_N, p2_N, ids_N, train_ids_N, faults, extra,
            )  # fmt: skip
        if kept == 0:
            continue

        _codes(
            place_V[:kept], advantage_N, version_N, turn_N, train_version, lag_edges, code_PV, joint_V, lag_counts,
            extra[layout.LAGS :],
        )  # fmt: skip
        # Log ratios, their cells, and the tokens that stand out.
        first = 0
        low, high = np.inf, -np.inf
        for k in range(pieces):
            last = piece_end[k]
            piece_mean[k] = stages.log_ratios(infer_V[first:last], train_V[first:last], d[first:last])
            piece_mean[k] /= last - first
            first = last
        low, high = stages.extremes(d[:kept])
        stages.cells(infer_V[:kept], train_V[:kept], d[:kept], cell[:kept], bin_cell[:kept], octave[:kept], faults)
        _thresholds(d[:kept], low, high, thresholds, passed)
        larges = stages.large(d[:kept], large) if max(high, -low) >= stages.SMALL else 0
        # Pieces: the sums of sequences and of everything.
        first, j = 0, 0
        sum_d, sum_p, sum_gap, sum_size = 0.0, 0.0, 0.0, 0.0
        for k in range(pieces):
            last = piece_end[k]
            target = rows_BQ[piece_row[k]]
            seen = count_B2[piece_row[k], VALID]
            stages.sums(
                infer_V[first:last], train_V[first:last], d[first:last], piece_mean[k],
                p[first:last], complement[first:last], gap[first:last], k3[first:last], sums,
            )  # fmt: skip
            begin = j
            while j < larges and large[j] < last:
                j += 1
            big[:], clipped[:] = 0.0, 0.0
            if j > begin:
                _large(j - begin, d, train_V, large[begin:j], work, p, gap, k3)
                for at in range(begin, j):
                    i = large[at]
                    _add_large(at - begin, d[i], gap[i], work, big, clipped, sums, extreme, target)
            piece_low, piece_high = stages.extremes(d[first:last])
            _finish_piece(last - first, j - begin, sums, big, clipped, piece_low, piece_high, seen, target, total)
            count_B2[piece_row[k], VALID] += last - first
            if len(version_N):
                _oldest(place_V[first:last], version_N, train_version, target)
            sum_d += sums[10] - sums[11]
            sum_size += sums[16]
            sum_p += sums[18]
            sum_gap += sums[19]
            first = last

        # Moments of the block.
        moments[0], moments[1], moments[3], moments[6] = kept, sum_d / kept, sum_size / kept, sum_p / kept
        moments[5] = moments[6] + sum_gap / kept
        moments[2], moments[4], moments[7], moments[8], moments[9], moments[10] = stages.squares(
            d[:kept], p[:kept], gap[:kept], moments[1], moments[6], sum_gap / kept, moments[3]
        )
        add_moments(moment, moments)

        # Grids, and what is counted per sequence.
        if level >= layout.WITH_BINS:
            stages.probability_bins(infer_V[:kept], first_bin, edges, bins[:kept])
        first = 0
        for k in range(pieces):
            last, of = piece_end[k], piece_row[k]
            if open_row != of:
                _close(open_row, count_B2, open_octaves, open_bins, level, exceed, bin_sq, bucket_SB, octaves)
                open_row = of
            if len(advantage_N) == 0:
                stages.count_cells(cell[first:last], sign_grid[sign_B[of] * CELLS :])
            else:
                sign = code_PV[layout.BY_ADVANTAGE, first] if sign_B[of] < 0 else sign_B[of]
                for i in range(first, last):
                    code = code_PV[layout.BY_ADVANTAGE, i]
                    sign_grid[code * CELLS + cell[i]] += 1
                    sign = sign if code == sign else layout.UNKNOWN_SIGN
                sign_B[of] = sign
            stages.count_cells(octave[first:last], open_octaves)
            if level >= layout.WITH_BINS:
                stages.count_cells(bins[first:last], open_bins)
            if level >= layout.ALL:
                _segments(
                    first, last, offsets_B1[of], place_V, code_PV, joint_V, base_P, d, complement, k3, octave, one,
                    stats, octaves,
                )  # fmt: skip
            first = last
        if level >= layout.WITH_BINS:
            _bins(kept, bins, d, complement, k3, bin_cell, sorted_d, sorted_c, sorted_k, one, bin_stats, bin_grid)
        if max(high, -low) > stages.CLIP:
            for j in range(larges):
                i = large[j]
                if abs(d[i]) > stages.CLIP:
                    mantissa, exponent = extreme_k3(d[i])
                    if level >= layout.WITH_BINS:
                        add_scaled(bin_stats[bins[i], layout.STAT_MANTISSA :], mantissa, exponent)
                    if level >= layout.ALL:
                        of = np.searchsorted(offsets_B1, place_V[i], side="right") - 1
                        at = _position_bucket(place_V[i] - offsets_B1[of])
                        add_scaled(stats[at, layout.STAT_MANTISSA :], mantissa, exponent)
                        for q in range(layout.PROPERTIES):
                            if base_P[q] >= 0:
                                at = base_P[q] + code_PV[q, i]
                                add_scaled(stats[at, layout.STAT_MANTISSA :], mantissa, exponent)
        for side in range(2):
            full = pick_counts[side] == PICKS
            if full and (high if side == 0 else -low) <= pick_values[side, PICKS - 1]:
                continue
            pick_counts[side] = _pick(
                d[:kept], place_V, 1.0 - 2.0 * side, pick_values[side], pick_places[side], pick_counts[side]
            )
    _close(open_row, count_B2, open_octaves, open_bins, level, exceed, bin_sq, bucket_SB, octaves)


def _readonly(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", readonly=True)


_F32, _BOOL, _I16, _I32, _I64 = map(_readonly, (types.float32, types.boolean, types.int16, types.int32, types.int64))
_SIGNATURE = types.void(
    _F32, _F32, _BOOL, _BOOL, _F32, _F32, _F32, _I32, _I32,  # columns of the batch
    _F32, _I32, _I16, types.int64, types.int64[::1], types.int32[::1], types.int32[:, ::1],  # properties
    _I64, _I64, types.int32[::1], types.float32[::1], types.float64[::1],  # offsets and edges
    types.int64, types.int64[::1], types.int64, types.int64,  # what to do
    types.float64[:, ::1], types.int64[:, ::1],  # per sequence
    types.float64[:, ::1], types.float64[:, :, ::1], types.float64[:, ::1], types.float64[:, :, ::1],  # per chunk
    types.float64[:, ::1], types.float64[:, :, :, ::1], types.float64[:, ::1], types.float64[:, :, ::1],
    types.int32[::1], types.int32[::1], types.int32[:, ::1], types.int64[:, ::1], types.int64[::1],  # per worker
    types.float64[:, ::1], types.int64[:, ::1], types.int64[::1], types.int64[::1],
)  # fmt: skip


def _entry(fingerprint: int) -> Any:
    @entry(_SIGNATURE)
    def pass_chunks(
        infer_N: Any, train_N: Any, mask_N: Any, post_N: Any, entropy_N: Any, infer_entropy_N: Any, p2_N: Any,
        ids_N: Any, train_ids_N: Any,
        advantage_N: Any, version_N: Any, turn_N: Any, train_version: Any, base_P: Any, sign_B: Any, bucket_SB: Any,
        offsets_B1: Any, lag_edges: Any, first_bin: Any, edges: Any, thresholds: Any,
        level: Any, bounds_C1: Any, first_chunk: Any, step: Any,
        rows_BQ: Any, count_B2: Any,
        total_C: Any, extreme_C: Any, moment_C: Any, align_C: Any,
        extra_C: Any, exceed_C: Any, bin_sq_C: Any, stats_C: Any,
        sign_grid: Any, bin_grid: Any, octaves: Any, passed: Any, faults: Any,
        pick_values: Any, pick_places: Any, pick_counts: Any, lag_counts: Any,
    ) -> None:  # fmt: skip
        """Add the sequences of chunks first_chunk, first_chunk + step, ... to everything; chunk c ends at c + 1."""
        if fingerprint == 0:  # the closure's variable is part of the key of the compiled code, where it is used
            return
        for chunk in range(first_chunk, len(bounds_C1) - 1, step):
            _pass_chunk(
                infer_N, train_N, mask_N, post_N, entropy_N, infer_entropy_N, p2_N,
                ids_N, train_ids_N,
                advantage_N, version_N, turn_N, train_version, base_P, sign_B, bucket_SB,
                offsets_B1, lag_edges, first_bin, edges, thresholds,
                level, chunk, bounds_C1[chunk], bounds_C1[chunk + 1],
                rows_BQ, count_B2,
                total_C, extreme_C, moment_C, align_C,
                extra_C, exceed_C, bin_sq_C, stats_C,
                sign_grid, bin_grid, octaves, passed, faults,
                pick_values, pick_places, pick_counts, lag_counts,
            )  # fmt: skip

    return pass_chunks


pass_chunks = _entry(FINGERPRINT)


def _fold_entry(fingerprint: int) -> Any:
    @entry(types.void(types.float64[:, ::1], types.float64[:, :, ::1], types.float64[:, :, ::1], types.float64[:, ::1]))
    def fold(moment_C: Any, extreme_C: Any, stats_C: Any, residual_C3: Any) -> None:
        """Add up all chunks into the first, in their order."""
        if fingerprint == 0:
            return
        for c in range(1, len(moment_C)):
            add_moments(moment_C[0], moment_C[c])
            for q in range(SCALED):
                add_scaled(extreme_C[0, q], extreme_C[c, q, 0], extreme_C[c, q, 1])
            for r in range(stats_C.shape[1]):
                add_stat(stats_C[0, r], stats_C[c, r])
            add_mean(residual_C3[0], residual_C3[c, 0], residual_C3[c, 1], residual_C3[c, 2])

    return fold


fold = _fold_entry(FINGERPRINT)


def _sequences_entry(fingerprint: int) -> Any:
    @entry(types.void(types.float64[:, ::1], types.int64[:, ::1], types.int32[::1], types.float64[:, ::1]))
    def by_sequence(rows_BQ: Any, count_B2: Any, code_B: Any, stats_RS: Any) -> None:
        """Add up sequences by the code of a property, in their order."""
        if fingerprint == 0:
            return
        rows_to_buckets(rows_BQ, count_B2, code_B, stats_RS)

    return by_sequence


by_sequence = _sequences_entry(FINGERPRINT)
