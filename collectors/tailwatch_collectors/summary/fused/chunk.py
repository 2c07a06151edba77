"""The pass over one chunk of whole sequences: blocks of tokens through the stages, each number added where it belongs.

A block is cut into pieces, one per sequence that has tokens in it, and a piece into segments, in which no property of
the tokens changes. Pieces give the sums of their sequences, segments and probability bins those of the buckets.

Shapes: B sequences, N tokens, P properties known per token, S per sequence, C chunks, R buckets, V tokens of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.fused import layout, stages
from tailwatch_collectors.summary.fused.arithmetic import add_scaled, extreme_k3
from tailwatch_collectors.summary.fused.buckets import add_mean, add_moments
from tailwatch_collectors.summary.fused.jit import strict
from tailwatch_collectors.summary.fused.layout import BINS, BLOCK, CELLS, MASKED, OCTAVES, PICKS, SCALED, VALID
from tailwatch_collectors.summary.fused.pieces import (
    add_large,
    align,
    close_sequence,
    compress,
    finish_piece,
    large_tokens,
    raise_oldest,
)
from tailwatch_collectors.summary.fused.slicing import add_bins, add_segments, codes, position_bucket

_THRESHOLDS = len(schema.RATIO_THRESHOLDS)


@strict()
def _take(
    start: Any, end: Any, row: Any, last_row: Any, infer_N: Any, train_N: Any, mask_N: Any, offsets_B1: Any,
    infer_V: Any, train_V: Any, place_V: Any, valid: Any, piece_row: Any, piece_end: Any, count_B2: Any,
    heads: Any, align_sums: Any, faults: Any,
) -> Any:  # fmt: skip
    """Fill a block with the tokens that count, and the pieces they form.

    Returns:
        The sequence that the next block starts in, the number of pieces, and of tokens.
    """
    n = end - start
    bad, positive = stages.unsound(infer_N[start:end], train_N[start:end])
    clean = bad == 0 and (len(mask_N) == 0 or stages.count_true(mask_N[start:end]) == n)
    pieces, kept = 0, 0
    if clean:
        stages.fill(infer_N[start:end], train_N[start:end], start, infer_V, train_V, place_V)
        valid[:n] = 1
        faults[layout.POSITIVE] += positive
    while row < last_row and offsets_B1[row] < end:
        if offsets_B1[row] >= start:
            align(infer_N, train_N, mask_N, offsets_B1[row], offsets_B1[row + 1], heads, align_sums)
        first, last = max(offsets_B1[row], start), min(offsets_B1[row + 1], end)
        before = kept
        if clean:
            masked = last - first
            kept += masked
        else:
            masked, kept = compress(
                infer_N, train_N, mask_N, start, first, last, kept, infer_V, train_V, place_V, valid, faults
            )
        count_B2[row, MASKED] += masked
        if kept > before:
            piece_row[pieces], piece_end[pieces] = row, kept
            pieces += 1
        if offsets_B1[row + 1] > end:
            break
        row += 1
    return row, pieces, kept


@strict()
def _extremes(
    n: Any, large: Any, d: Any, place_V: Any, offsets_B1: Any, bins: Any, code_PV: Any, base_P: Any, level: Any,
    bin_stats: Any, stats: Any,
) -> Any:  # fmt: skip
    """Add k3 of tokens of |d| > CLUSTER_CLIP, of n that are large, to their buckets, with its exponent."""
    for j in range(n):
        i = large[j]
        if abs(d[i]) <= stages.CLIP:
            continue
        mantissa, exponent = extreme_k3(d[i])
        if level >= layout.WITH_BINS:
            add_scaled(bin_stats[bins[i], layout.STAT_MANTISSA :], mantissa, exponent)
        if level >= layout.ALL:
            row = np.searchsorted(offsets_B1, place_V[i], side="right") - 1
            at = position_bucket(place_V[i] - offsets_B1[row])
            add_scaled(stats[at, layout.STAT_MANTISSA :], mantissa, exponent)
            for q in range(layout.PROPERTIES):
                if base_P[q] >= 0:
                    at = base_P[q] + code_PV[q, i]
                    add_scaled(stats[at, layout.STAT_MANTISSA :], mantissa, exponent)


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
def pass_chunk(
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
    heads = np.empty((4, schema.ALIGN_TOKENS))
    open_octaves, open_bins = np.zeros(OCTAVES, np.int32), np.zeros(BINS, np.int32)
    open_row = -1

    optional = len(post_N) + len(ids_N) + len(entropy_N) + len(infer_entropy_N) + len(p2_N) > 0
    row = first_row
    last_token = offsets_B1[last_row]
    for start in range(offsets_B1[first_row], last_token, BLOCK):
        end = min(start + BLOCK, last_token)
        n = end - start
        row, pieces, kept = _take(
            start, end, row, last_row, infer_N, train_N, mask_N, offsets_B1,
            infer_V, train_V, place_V, valid, piece_row, piece_end, count_B2, heads, align_C[chunk], faults,
        )  # fmt: skip
        if optional:
            if kept:
                stages.log_ratios(infer_V[:kept], train_V[:kept], d[:kept])
            _extras(
                n, start, kept, valid, place_V, train_V, d, buffer, residual,
                post_N, mask_N, entropy_N, infer_entropy_N, p2_N, ids_N, train_ids_N, faults, extra,
            )  # fmt: skip
        if kept == 0:
            continue

        codes(
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
                large_tokens(j - begin, d, train_V, large[begin:j], work, p, gap, k3)
                for at in range(begin, j):
                    i = large[at]
                    add_large(at - begin, d[i], gap[i], work, big, clipped, sums, extreme, target)
            piece_low, piece_high = stages.extremes(d[first:last])
            finish_piece(last - first, j - begin, sums, big, clipped, piece_low, piece_high, seen, target, total)
            count_B2[piece_row[k], VALID] += last - first
            if len(version_N):
                raise_oldest(place_V[first:last], version_N, train_version, target)
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
                close_sequence(open_row, count_B2, open_octaves, open_bins, level, exceed, bin_sq, bucket_SB, octaves)
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
                add_segments(
                    first, last, offsets_B1[of], place_V, code_PV, joint_V, base_P, d, complement, k3, octave, one,
                    stats, octaves,
                )  # fmt: skip
            first = last
        if level >= layout.WITH_BINS:
            add_bins(kept, bins, d, complement, k3, bin_cell, sorted_d, sorted_c, sorted_k, one, bin_stats, bin_grid)
        if max(high, -low) > stages.CLIP:
            _extremes(larges, large, d, place_V, offsets_B1, bins, code_PV, base_P, level, bin_stats, stats)
        for side in range(2):
            full = pick_counts[side] == PICKS
            if full and (high if side == 0 else -low) <= pick_values[side, PICKS - 1]:
                continue
            pick_counts[side] = _pick(
                d[:kept], place_V, 1.0 - 2.0 * side, pick_values[side], pick_places[side], pick_counts[side]
            )
    close_sequence(open_row, count_B2, open_octaves, open_bins, level, exceed, bin_sq, bucket_SB, octaves)
