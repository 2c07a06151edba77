"""Picks: the few tokens a summary names, so that an alert leads to a token even when tokens are not kept.

The worst at each end of d, and a uniform random sample, are all the tokens of highest priority: of |d| at that end,
or of a number drawn by hashing where the token stands. Equal ones are ordered by that place, so that merging is exact
in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch

_STRIDE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """A few tokens, those of highest priority first."""

    priority: NDArray[np.float64]
    """d for the upper end, -d for the lower, uniform on [0, 1) for the sample."""
    infer_logprob: NDArray[np.float32]
    train_logprob: NDArray[np.float32]
    rank: NDArray[np.int32]
    part: NDArray[np.int32]
    row: NDArray[np.int32]
    """Sequence within the batch."""
    position: NDArray[np.int32]
    """Response token t within the sequence."""
    token_id: NDArray[np.int64]
    """-1 where ids were not sent."""
    seq_id: tuple[str, ...]
    """Empty where names were not sent."""

    @classmethod
    def empty(cls) -> Picks:
        """No token; the identity of `merge`."""
        i32 = np.empty(0, np.int32)
        f32 = np.empty(0, np.float32)
        return cls(np.empty(0), f32, f32, i32, i32, i32, i32, np.empty(0, np.int64), ())

    def merge(self, *others: Picks, limit: int) -> Picks:
        """The first `limit` of all."""
        held = [picks for picks in (self, *others) if len(picks.priority)]
        if len(held) <= 1:
            return held[0] if held else self
        names = tuple(name for picks in held for name in picks.seq_id)
        joined = {
            field.name: np.concatenate([getattr(picks, field.name) for picks in held])
            for field in fields(self)
            if field.name != "seq_id"
        }
        # Two batches of one key may share a place: the values decide, so that neither side comes first by itself.
        values = (np.array(names), joined["token_id"], joined["train_logprob"], joined["infer_logprob"])
        keys = (joined["position"], joined["row"], joined["part"], joined["rank"], -joined["priority"])
        order = np.lexsort((*values, *keys))[:limit]
        picked = {name: column[order] for name, column in joined.items()}
        return Picks(**picked, seq_id=tuple(names[index] for index in order))


def pick(batch: Batch, index: NDArray[np.int64], priority: NDArray[np.float64]) -> Picks:
    """The tokens at `index` in the flat arrays of a batch."""
    row = np.searchsorted(batch.offsets_B1, index, side="right") - 1
    ids = batch.token_ids_N
    return Picks(
        priority=priority + 0.0,  # -0.0 and 0.0 compare equal but are not the same bits
        infer_logprob=batch.infer_logprobs_N[index] + np.float32(0),
        train_logprob=batch.train_logprobs_N[index] + np.float32(0),
        rank=np.full(len(index), batch.meta.rank, np.int32),
        part=np.full(len(index), batch.meta.part, np.int32),
        row=row.astype(np.int32),
        position=(index - batch.offsets_B1[row]).astype(np.int32),
        token_id=np.full(len(index), -1, np.int64) if ids is None else ids[index].astype(np.int64),
        seq_id=() if len(index) == 0 else tuple("" if batch.seq_id is None else batch.seq_id[r] for r in row),
    )


def highest(values: NDArray[np.float64], limit: int) -> NDArray[np.intp]:
    """Indices of the `limit` highest values, the highest first; equal ones by index."""
    if len(values) > 2 * _STRIDE * limit:
        # The limit-th largest of the maxima of blocks bounds the limit-th largest value from below.
        whole = len(values) // _STRIDE * _STRIDE
        maxima = values[:whole].reshape(-1, _STRIDE).max(axis=1)
        bound = np.partition(maxima, len(maxima) - limit)[-limit]
        few = np.flatnonzero(values >= bound)
        if len(few) <= len(values) // 2:
            picked: NDArray[np.intp] = few[highest(values[few], limit)]
            return picked
    if len(values) > limit:
        threshold = np.partition(values, len(values) - limit)[-limit]
        above = np.flatnonzero(values > threshold)
        level = np.flatnonzero(values == threshold)[: limit - len(above)]
        candidates = np.sort(np.concatenate((above, level)))
    else:
        candidates = np.arange(len(values))
    return candidates[np.argsort(-values[candidates], kind="stable")]


def uniform(*places: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """A number on [0, 1) from where a token stands: its place, hashed (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # the hash wraps on purpose
        state = np.zeros(1, np.uint64)
        for place in places:
            state = (state ^ np.asarray(place, np.int64).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    drawn: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn
