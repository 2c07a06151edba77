"""Sequence statistics over complete sequences: those whose tokens in the mask are all valid.

S is the sum of d over a sequence, T its tokens, g = S / T, z = S / sqrt(T). Shapes: C complete sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count, magnitude_index, sequence_offset, signed_cell
from tailwatch_collectors.summary.scaled import MAX_LOG, ScaledSums, sum_exp

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_GEOMETRIC_BAND = math.log(1.001)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """Per-sequence sums of the complete sequences of a batch."""

    T_C: Int64Array
    S_C: Float64Array
    min_C: Float64Array
    """Smallest d in each."""
    max_C: Float64Array
    infer_C: Float64Array
    """Sum of inference log-probs."""
    train_C: Float64Array
    sign_C: Int64Array
    """Index into ADVANTAGE_SIGNS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceStatistics:
    """The summary's sequence fields."""

    sums: Float64Array
    scaled: ScaledSums
    grid: Grid
    length_counts: Int64Array
    length_sums: Float64Array
    gap_min: float
    gap_max: float
    outside_2x: int
    outside_5x: int
    geometric_outside: int


def sequence_statistics(sequences: Sequences) -> SequenceStatistics:
    """Statistics of the complete sequences."""
    T_C, S_C = sequences.T_C, sequences.S_C
    tokens_C = T_C.astype(np.float64)
    g_C = S_C / tokens_C
    infer_mean_C, train_mean_C = sequences.infer_C / tokens_C, sequences.train_C / tokens_C
    gap_C = 0.0 - g_C  # the difference of the two means would cancel where the policies are close
    bounded_S_C = np.clip(S_C, -MAX_LOG, MAX_LOG)
    scaled = {
        "ratio": bounded_S_C,
        "ratio_sq": 2 * bounded_S_C,
        "geometric_ratio": g_C,
        "infer_ppl": -infer_mean_C,
        "train_ppl": -train_mean_C,
    }
    values = {"S": S_C, "g": g_C, "z": S_C / np.sqrt(tokens_C), "min": sequences.min_C, "max": sequences.max_C}
    size_C = np.abs(S_C)
    return SequenceStatistics(
        sums=np.array([gap_C.sum(), np.abs(gap_C).sum(), g_C.sum()]),
        scaled=sum_exp(np.stack([scaled[name] for name in schema.SEQUENCE_SCALED])),
        grid=_grid(values, T_C, sequences.sign_C),
        length_counts=np.bincount(_bucket(T_C), minlength=schema.LENGTH_BUCKETS).astype(np.int64),
        length_sums=_length_sums(tokens_C, S_C, _bucket(T_C)),
        gap_min=float(gap_C.min(initial=math.inf)),
        gap_max=float(gap_C.max(initial=-math.inf)),
        outside_2x=int(np.count_nonzero(size_C > math.log(2))),
        outside_5x=int(np.count_nonzero(size_C > math.log(5))),
        geometric_outside=int(np.count_nonzero(np.abs(g_C) > _GEOMETRIC_BAND)),
    )


def _bucket(T_C: Int64Array) -> Int64Array:
    """floor(log2 T), exact."""
    floor_log2 = np.frexp(T_C.astype(np.float64))[1].astype(np.int64) - 1
    return np.minimum(floor_log2, schema.LENGTH_BUCKETS - 1)


def _length_sums(T_C: Float64Array, S_C: Float64Array, bucket_C: Int64Array) -> Float64Array:
    columns = {"T": T_C, "TT": T_C * T_C, "logT": np.log(T_C), "S": S_C, "SS": S_C * S_C, "ST": S_C * T_C}
    sums = [np.bincount(bucket_C, columns[name], schema.LENGTH_BUCKETS) for name in schema.LENGTH_SUMS]
    return np.stack(sums, axis=1).astype(np.float64)  # bincount of nothing counts in integers


def _grid(values: dict[str, Float64Array], T_C: Int64Array, sign_C: Int64Array) -> Grid:
    finest = max(schema.SEQUENCE_BITS.values())
    with np.errstate(over="ignore"):  # beyond float32 is beyond the grid: its last cell
        x_GC = np.stack([values[name] for name in schema.SEQUENCE_GRIDS]).astype(np.float32)
    index_GC = magnitude_index(x_GC, finest)
    keys_GC = np.empty(x_GC.shape, np.int64)
    for row, name in enumerate(schema.SEQUENCE_GRIDS):
        bits = schema.SEQUENCE_BITS[name]
        # A coarser grid's index is the finer one's without its last bits: -1 and the end stay what they are.
        cell_C = signed_cell(x_GC[row], index_GC[row] >> (finest - bits), bits)
        keys_GC[row] = sequence_offset(name, 0) + sign_C * cell_count(bits) + cell_C
    counts = np.stack((np.ones_like(T_C), T_C), axis=1)
    return Grid.of_keys(keys_GC.ravel(), np.concatenate([counts] * len(keys_GC)))
