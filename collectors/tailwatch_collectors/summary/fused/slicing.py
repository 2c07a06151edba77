"""Slicing: codes of what is known per token, segments in which none changes, and the buckets both are added to.

Shapes: N tokens, P properties known per token, R buckets, V tokens of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.fused import layout, stages
from tailwatch_collectors.summary.fused.buckets import add_stat
from tailwatch_collectors.summary.fused.jit import strict
from tailwatch_collectors.summary.fused.layout import BIN_CELLS, BINS, POSITIONS


@strict()
def position_bucket(position: Any) -> Any:
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
def codes(
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
def add_segments(
    first: Any, last: Any, start_N: Any, place_V: Any, code_PV: Any, joint_V: Any, base_P: Any,
    d: Any, complement: Any, k3: Any, octave: Any, one: Any, stats: Any, octaves: Any,
) -> Any:  # fmt: skip
    """Cut a piece into segments and add each to its buckets: of position, and of every property known per token."""
    i = first
    while i < last:
        bucket = position_bucket(place_V[i] - start_N)
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
def add_bins(
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
