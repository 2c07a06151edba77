"""Entries: what Python calls, each compiled for one signature and kept on disk under the fingerprint of all sources.

Shapes: B sequences, N tokens, P properties known per token, S per sequence, C chunks, R buckets, Q sums.
"""

from __future__ import annotations

from typing import Any

from numba import types

from tailwatch_collectors.summary.fused.arithmetic import add_scaled
from tailwatch_collectors.summary.fused.buckets import add_mean, add_moments, add_stat, rows_to_buckets
from tailwatch_collectors.summary.fused.chunk import pass_chunk
from tailwatch_collectors.summary.fused.jit import FINGERPRINT, entry
from tailwatch_collectors.summary.fused.layout import SCALED


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
            pass_chunk(
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
