"""The worst tokens of a batch at one end of d, so that an alert leads to a token even when tokens are not kept.

Ordered by |d| at that end, then by where the token stands, so that merging is exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary.schema import WORST_TOKENS

_STRIDE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Worst:
    """Up to WORST_TOKENS tokens, the worst first."""

    badness: NDArray[np.float64]
    """d at the upper end, -d at the lower."""
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
    def empty(cls) -> Worst:
        """No token; the identity of `merge`."""
        i32 = np.empty(0, np.int32)
        f32 = np.empty(0, np.float32)
        return cls(np.empty(0), f32, f32, i32, i32, i32, i32, np.empty(0, np.int64), ())

    def merge(self, other: Worst) -> Worst:
        """The worst of both."""
        if len(self.badness) == 0:
            return other
        if len(other.badness) == 0:
            return self
        names = self.seq_id + other.seq_id
        joined = {
            field.name: np.concatenate((getattr(self, field.name), getattr(other, field.name)))
            for field in fields(self)
            if field.name != "seq_id"
        }
        # Two batches of one key may share a place: the values decide, so that neither side comes first by itself.
        values = (np.array(names), joined["token_id"], joined["train_logprob"], joined["infer_logprob"])
        keys = (joined["position"], joined["row"], joined["part"], joined["rank"], -joined["badness"])
        order = np.lexsort((*values, *keys))[:WORST_TOKENS]
        picked = {name: column[order] for name, column in joined.items()}
        return Worst(**picked, seq_id=tuple(names[index] for index in order))


def worst_indices(badness: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the worst values, the worst first; equal ones by index."""
    if len(badness) > 2 * _STRIDE * WORST_TOKENS:
        # The 32nd largest of the maxima of blocks bounds the 32nd largest from below.
        whole = len(badness) // _STRIDE * _STRIDE
        maxima = badness[:whole].reshape(-1, _STRIDE).max(axis=1)
        bound = np.partition(maxima, len(maxima) - WORST_TOKENS)[-WORST_TOKENS]
        few = np.flatnonzero(badness >= bound)
        if len(few) <= len(badness) // 2:
            picked: NDArray[np.intp] = few[worst_indices(badness[few])]
            return picked
    if len(badness) > WORST_TOKENS:
        threshold = np.partition(badness, len(badness) - WORST_TOKENS)[-WORST_TOKENS]
        above = np.flatnonzero(badness > threshold)
        level = np.flatnonzero(badness == threshold)[: WORST_TOKENS - len(above)]
        candidates = np.sort(np.concatenate((above, level)))
    else:
        candidates = np.arange(len(badness))
    return candidates[np.argsort(-badness[candidates], kind="stable")]
