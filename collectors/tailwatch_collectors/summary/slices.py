"""Slices: token statistics per bucket of a property of the tokens (policy lag, position, source, ...).

A slice keeps only the buckets that hold tokens, by label, so that any slice merges with any other of its name, also
one that this version does not know. Names beyond the slice's limit share one bucket: those of the largest hash,
which makes the result independent of the order of merging.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import schema
from tailwatch_collectors.summary.grid import Grid, cell_count
from tailwatch_collectors.summary.moments import Moments
from tailwatch_collectors.summary.scaled import ScaledSums, sum_scaled

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

OCTAVES = cell_count(schema.OCTAVE_BITS)
"""Cells of a bucket's octave histogram."""


@dataclass(frozen=True, slots=True, eq=False)
class BucketStats:
    """Token statistics per bucket, R buckets."""

    counts_RC: Int64Array
    """[R, SLICE_COUNTS]"""
    sums_RQ: Float64Array
    """[R, SLICE_SUMS]"""
    log_ratio_R: Moments
    k3_R: ScaledSums
    min_R: Float64Array
    """Smallest d; inf in an empty bucket."""
    max_R: Float64Array
    """Largest d; -inf in an empty bucket."""

    @classmethod
    def empty(cls, buckets: int) -> BucketStats:
        """Empty buckets; the identity of `merge`."""
        return cls(
            np.zeros((buckets, len(schema.SLICE_COUNTS)), np.int64),
            np.zeros((buckets, len(schema.SLICE_SUMS))),
            Moments.zeros(buckets),
            ScaledSums.zeros(buckets),
            np.full(buckets, np.inf),
            np.full(buckets, -np.inf),
        )

    def merge(self, other: BucketStats) -> BucketStats:
        """Bucket by bucket."""
        return BucketStats(
            self.counts_RC + other.counts_RC,
            self.sums_RQ + other.sums_RQ,
            self.log_ratio_R.merge(other.log_ratio_R),
            self.k3_R.merge(other.k3_R),
            np.minimum(self.min_R, other.min_R),
            np.maximum(self.max_R, other.max_R),
        )

    def rows(self, rows: Any) -> BucketStats:
        """Some of the buckets, by slice or index."""
        return BucketStats(*self._joined([array[rows] for array in self._arrays()]))

    def spread(self, rows: NDArray[np.intp], *, buckets: int) -> BucketStats:
        """These buckets as rows `rows` of `buckets`; the others empty."""
        spread = BucketStats.empty(buckets)
        for theirs, mine in zip(spread._arrays(), self._arrays(), strict=True):
            theirs[rows] = mine
        return spread

    def pooled(self) -> BucketStats:
        """[1] all buckets as one, added up in their order; at least one bucket."""
        moments = self.log_ratio_R
        n = moments.n.sum()
        mean = (moments.n * moments.mean).sum() / max(int(n), 1)
        offset = moments.mean - mean
        m2 = (moments.m2 + moments.n * offset * offset).sum()
        return BucketStats(
            self.counts_RC.sum(axis=0)[None],
            self.sums_RQ.sum(axis=0)[None],
            Moments(n[None], mean[None], m2[None]),
            ScaledSums(*(part[None] for part in _scaled_total(self.k3_R))),
            self.min_R.min()[None],
            self.max_R.max()[None],
        )

    def _arrays(self) -> list[NDArray[Any]]:
        moments, k3 = self.log_ratio_R, self.k3_R
        counts, sums = self.counts_RC, self.sums_RQ
        return [counts, sums, moments.n, moments.mean, moments.m2, k3.mantissa, k3.exponent, self.min_R, self.max_R]

    @staticmethod
    def _joined(arrays: Sequence[NDArray[Any]]) -> tuple[Any, ...]:
        counts, sums, n, mean, m2, mantissa, exponent, low, high = arrays
        return counts, sums, Moments(n, mean, m2), ScaledSums(mantissa, exponent), low, high


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Token statistics by label."""

    labels: tuple[str, ...]
    """[R] buckets that hold tokens, in order of text."""
    limit: int
    """Buckets kept by name."""
    stats: BucketStats
    """[R]"""
    octaves: Grid
    """Histogram of d per bucket, one cell per octave; key = bucket * OCTAVES + cell."""

    @classmethod
    def of(cls, labels: Sequence[str], stats: BucketStats, octaves_RK: NDArray[np.integer], *, limit: int) -> Slice:
        """From [R] buckets under any labels, each once, with [R, OCTAVES] dense counts."""
        held = [index for index in range(len(labels)) if stats.counts_RC[index, 0]]
        order = np.array(sorted(held, key=lambda index: labels[index]), np.intp)
        names = tuple(labels[index] for index in order)
        octaves = Grid.of_dense(np.ascontiguousarray(octaves_RK[order]).ravel())
        return cls(names, limit, stats.rows(order), octaves)._within_limit()

    def merge(self, other: Slice) -> Slice:
        """Label by label."""
        if self.labels == other.labels:
            stats, octaves = self.stats.merge(other.stats), self.octaves.merge(other.octaves)
            return Slice(self.labels, max(self.limit, other.limit), stats, octaves)
        labels = tuple(sorted({*self.labels, *other.labels}))
        mine, theirs = self._under(labels), other._under(labels)
        merged = mine.stats.merge(theirs.stats)
        limit = max(self.limit, other.limit)
        return Slice(labels, limit, merged, mine.octaves.merge(theirs.octaves))._within_limit()

    def bucket(self, label: str) -> BucketStats | None:
        """[1] one bucket; None where no token fell into it."""
        if label not in self.labels:
            return None
        index = self.labels.index(label)
        return self.stats.rows(slice(index, index + 1))

    def octaves_of(self, label: str) -> Grid:
        """Histogram of d of one bucket; empty where no token fell into it."""
        return self.octaves.part(self.labels.index(label), size=OCTAVES) if label in self.labels else Grid.empty()

    def _under(self, labels: tuple[str, ...]) -> Slice:
        """The same under more labels, in order of text."""
        place = {label: index for index, label in enumerate(labels)}
        rows = np.array([place[label] for label in self.labels], np.intp)
        keys = self.octaves.keys
        moved = rows[keys // OCTAVES] * OCTAVES + keys % OCTAVES
        stats = self.stats.spread(rows, buckets=len(labels))
        return Slice(labels, self.limit, stats, Grid(moved.astype(np.int64), self.octaves.counts))

    def _within_limit(self) -> Slice:
        """Names beyond the limit folded into OTHER."""
        named = [label for label in self.labels if label != schema.OTHER]
        if len(named) <= self.limit:
            return self
        kept = sorted(sorted(named, key=_hash)[: self.limit])
        labels = tuple(sorted({*kept, schema.OTHER}))
        place = {label: index for index, label in enumerate(labels)}
        row_of = {label: index for index, label in enumerate(self.labels)}
        # In order of hash, so that what is folded is added up in the same order whichever way it came.
        folded = sorted(row_of.keys() - set(kept), key=_hash)
        other = self.stats.rows(np.array([row_of[label] for label in folded], np.intp)).pooled()
        own = self.stats.rows(np.array([row_of[label] for label in kept], np.intp))
        stats = own.spread(np.array([place[label] for label in kept], np.intp), buckets=len(labels))
        stats = stats.merge(other.spread(np.array([place[schema.OTHER]], np.intp), buckets=len(labels)))
        rows = np.array([place.get(label, place[schema.OTHER]) for label in self.labels], np.int64)
        keys = rows[self.octaves.keys // OCTAVES] * OCTAVES + self.octaves.keys % OCTAVES
        return Slice(labels, self.limit, stats, Grid.of_keys(keys, self.octaves.counts))


def _scaled_total(sums: ScaledSums) -> tuple[NDArray[Any], NDArray[Any]]:
    total = sum_scaled(sums.mantissa, sums.exponent)
    return np.asarray(total.mantissa), np.asarray(total.exponent)


@lru_cache(maxsize=4_096)
def _hash(label: str) -> bytes:
    return hashlib.blake2b(label.encode(), digest_size=16).digest()


def merge_slices(mine: Mapping[str, Slice], theirs: Mapping[str, Slice]) -> dict[str, Slice]:
    """Slice by slice, in order of name; one that only one side has is that side's."""
    merged = {}
    for name in sorted({*mine, *theirs}):
        if name in mine and name in theirs:
            merged[name] = mine[name].merge(theirs[name])
        else:
            merged[name] = mine[name] if name in mine else theirs[name]
    return merged
