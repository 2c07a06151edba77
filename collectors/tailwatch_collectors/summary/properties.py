"""Properties: what tokens are sliced by, as small codes per sequence or per token.

Most properties are the same for a whole sequence, and the others change seldom within one; statistics per slice are
therefore sums over segments, in which nothing changes (see `segments`).

Shapes: B sequences, N tokens received, V valid tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema

Int64Array = NDArray[np.int64]
CodeArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Property:
    """One property of the tokens; a code indexes `labels`."""

    labels: tuple[str, ...]
    code_B: CodeArray | None
    """[B] code per sequence, where it is the same for its tokens."""
    code_N: CodeArray | None = None
    """[N] code per token otherwise."""


@dataclass(frozen=True, slots=True)
class Lags:
    """Policy lag in versions, per sequence or per token; neither where it is unknown."""

    lag_B: Int64Array | None = None
    lag_N: Int64Array | None = None


def lags(batch: Batch) -> Lags:
    """Training version minus inference version."""
    version = batch.meta.train_version
    if version is not None and batch.infer_version_N is not None:
        return Lags(lag_N=version - batch.infer_version_N.astype(np.int64))
    if version is not None and batch.infer_version_B is not None:
        return Lags(lag_B=version - batch.infer_version_B)
    return Lags()


def properties(batch: Batch, lag: Lags) -> dict[str, Property]:
    """Every property this batch carries, by the name of its slice; `position` goes by the token's place itself."""
    found = sequence_properties(batch, lag)
    if batch.advantage_N is not None and batch.advantage_B is None:
        found["advantage"] = Property(schema.ADVANTAGE_SIGNS, None, _sign(batch.advantage_N))
    if lag.lag_N is not None:
        found["lag"] = Property(schema.LAG_LABELS, None, _lag_bucket(lag.lag_N))
    if batch.turn_N is not None:
        last = schema.TURN_LABELS.index("7+")
        turn_N = np.where(batch.turn_N < 0, last + 1, np.minimum(batch.turn_N, last))
        found["turn"] = Property(schema.TURN_LABELS, None, turn_N.astype(np.int32))
    return found


def sequence_properties(batch: Batch, lag: Lags) -> dict[str, Property]:
    """The properties that tokens of a sequence share; advantage and lag as unknown where they are not among them."""
    unknown = np.full(batch.sequences, schema.ADVANTAGE_SIGNS.index("unknown"), np.int32)
    sign_B = unknown if batch.advantage_B is None else _sign(batch.advantage_B)
    lag_B = np.full(batch.sequences, schema.LAG_UNKNOWN, np.int32) if lag.lag_B is None else _lag_bucket(lag.lag_B)
    found = {
        "advantage": Property(schema.ADVANTAGE_SIGNS, sign_B),
        "lag": Property(schema.LAG_LABELS, lag_B),
        "rank": Property((str(batch.meta.rank),), np.zeros(batch.sequences, np.int32)),
    }
    for name, values in (("source", batch.source), ("replica", batch.replica)):
        if values is not None:
            found[name] = _named(values)
    return found


def advantage_sent(batch: Batch) -> bool:
    """Whether tokens carry an advantage at all."""
    return batch.advantage_B is not None or batch.advantage_N is not None


def _sign(advantage: NDArray[np.float32]) -> CodeArray:
    known = np.isfinite(advantage)
    sign = np.sign(np.where(known, advantage, 0)).astype(np.int32) + 1
    return np.where(known, sign, schema.ADVANTAGE_SIGNS.index("unknown")).astype(np.int32)


def _lag_bucket(lag: Int64Array) -> CodeArray:
    bucket = np.searchsorted(schema.LAG_EDGES, lag, side="right") - 1
    return np.where(lag < 0, schema.LAG_NEGATIVE, bucket).astype(np.int32)


def _named(values: tuple[str, ...]) -> Property:
    """Names as codes; a batch may hold more of them than a slice keeps."""
    place = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return Property(tuple(place), np.fromiter(map(place.__getitem__, values), np.int32, len(values)))
