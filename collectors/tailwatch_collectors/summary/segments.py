"""Segments: runs of valid tokens of one sequence in which no property changes.

Positions are bucketed by powers of two, weight versions and turns change seldom, everything else is fixed per
sequence: a response of a thousand tokens is about eleven segments. Each term is summed over segments once, and every
slice adds segments instead of tokens.

Shapes: V valid tokens, G segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.properties import CodeArray, Property
from tailwatch_collectors.summary.validation import Valid

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where properties change among the valid tokens."""

    starts_G: Int64Array
    """First valid token of each segment, ascending; no segment crosses a multiple of the chunk."""
    row_G: Int64Array
    """Sequence of each segment."""
    code_G: Mapping[str, CodeArray]
    """[G] by property: `position` and all of `properties`."""


def segments(batch: Batch, valid: Valid, known: Mapping[str, Property], *, chunk: int) -> Segments:
    """Cut the valid tokens into segments."""
    tokens = int(valid.count_B.sum())
    first_B = np.cumsum(valid.count_B) - valid.count_B
    cuts = [first_B[valid.count_B > 0], np.arange(0, tokens, chunk), _position_cuts(batch, valid, tokens)]
    by_token = {name: found.code_N for name, found in known.items() if found.code_N is not None}
    code_V = {name: code if valid.index_V is None else code[valid.index_V] for name, code in by_token.items()}
    cuts += [np.flatnonzero(code[1:] != code[:-1]) + 1 for code in code_V.values()]
    starts_G = np.unique(np.concatenate(cuts)).astype(np.int64)
    row_G = np.searchsorted(first_B + valid.count_B, starts_G, side="right")
    place_G = starts_G if valid.index_V is None else valid.index_V[starts_G]
    position_G = place_G - batch.offsets_B1[row_G]
    code_G = {"position": _position_bucket(position_G)}
    for name, found in known.items():
        code_G[name] = code_V[name][starts_G] if found.code_B is None else found.code_B[row_G]
    return Segments(starts_G, row_G, code_G)


def _position_cuts(batch: Batch, valid: Valid, tokens: int) -> Int64Array:
    """The valid tokens at which a position of 2, 4, 8, ... is reached."""
    length_B, start_B = batch.lengths_B, batch.offsets_B1[:-1]
    cuts = [np.empty(0, np.int64)]
    for bucket in range(1, schema.POSITION_BUCKETS):
        reached = length_B > 2**bucket
        if not reached.any():
            break
        cuts.append(start_B[reached] + 2**bucket)
    cuts_N = np.concatenate(cuts)
    if valid.index_V is not None:
        cuts_N = np.searchsorted(valid.index_V, cuts_N)
    inside: Int64Array = cuts_N[cuts_N < tokens]
    return inside


def _position_bucket(position: Int64Array) -> CodeArray:
    """floor(log2 t), exact; 0 and 1 share a bucket."""
    floor_log2 = np.frexp(np.maximum(position, 1).astype(np.float64))[1] - 1
    bucket: CodeArray = np.minimum(floor_log2, schema.POSITION_BUCKETS - 1).astype(np.int32)
    return bucket
