"""Token statistics per slice: by inference probability, and by every slice the summary holds, known or not."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import cell_count
from tailwatch_collectors.summary.slices import BucketStats
from tailwatch_service.statistics.quantiles import grid_quantile
from tailwatch_service.statistics.values import scaled_mean

Edges = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One bucket of a slice. Metrics that do not exist in it are absent."""

    label: str
    lower: float | None
    """Lower edge of the bucket, in the slice's unit; None where it has none."""
    upper: float | None
    """Upper edge; for whole numbers (lag, position, turn) the last one in the bucket."""
    metrics: dict[str, float]


def _whole_numbers(starts: Sequence[int]) -> list[Edges]:
    """Edges of buckets of whole numbers that begin at `starts`; the last is open."""
    return [(float(first), float(after - 1)) for first, after in itertools.pairwise(starts)] + [
        (float(starts[-1]), None)
    ]


def _named(labels: Sequence[str], edges: Sequence[Edges]) -> dict[str, Edges]:
    """Labels with their edges, in order; those left over have none."""
    return dict(zip(labels, [*edges, *[(None, None)] * (len(labels) - len(edges))], strict=True))


_BUCKETS: Mapping[str, Mapping[str, Edges]] = {
    "position": _named(schema.POSITION_LABELS, _whole_numbers([0, *(2**k for k in range(1, schema.POSITION_BUCKETS))])),
    "lag": _named(schema.LAG_LABELS, _whole_numbers(schema.LAG_EDGES.tolist())),
    "turn": _named(schema.TURN_LABELS, _whole_numbers(range(8))),
    "advantage": _named(schema.ADVANTAGE_SIGNS, []),
}
"""Slices whose buckets have an order of their own."""


def slices(summary: Summary) -> dict[str, list[SliceRow]]:
    """`probability` with all its bins, and every slice of the summary with its occupied buckets, in natural order:
    by their edges, names as a reader would sort them, what is beyond a slice's limit last."""
    edges = schema.PROBABILITY_EDGES
    probability = []
    for index in range(schema.PROBABILITY_BINS):
        metrics = _bucket_metrics(summary.bins, index) | _bin_quantiles(summary, index)
        label = f"{edges[index]:g}-{edges[index + 1]:g}"
        probability.append(SliceRow(label, edges[index], edges[index + 1], metrics))
    others = {name: slice_rows(summary, name) for name in summary.slices if name != "probability"}
    return {"probability": probability} | others


def slice_rows(summary: Summary, name: str) -> list[SliceRow]:
    """The occupied buckets of one slice, in natural order; none where the summary does not hold it."""
    if name not in summary.slices:
        return []
    part = summary.slices[name]
    edges = _BUCKETS.get(name, {})
    order = sorted(range(len(part.labels)), key=lambda index: _natural(part.labels[index], tuple(edges)))
    return [
        SliceRow(part.labels[index], *edges.get(part.labels[index], (None, None)), _bucket_metrics(part.stats, index))
        for index in order
    ]


def _natural(label: str, known: Sequence[str]) -> tuple[int, int, tuple[tuple[bool, int, str], ...]]:
    """Buckets with an order first, then names, numbers in them by size; what shares the bucket OTHER last."""
    if label in known:
        return 0, known.index(label), ()
    pieces = re.findall(r"([0-9]+)|([^0-9]+)", label)
    spelt = tuple((not number, int(number or 0), text) for number, text in pieces)
    return 1 + (label == schema.OTHER), 0, spelt


def _bucket_metrics(part: BucketStats, index: int) -> dict[str, float]:
    tokens, outside_2x, outside_5x = map(int, part.counts_RC[index])
    if tokens == 0:
        return {"tokens": 0.0}
    positive, negative, complement = map(float, part.sums_RQ[index])
    metrics = {
        "tokens": float(tokens),
        "log_ratio_mean": (positive - negative) / tokens,
        "log_ratio_abs_mean": (positive + negative) / tokens,
        "log_ratio_std": math.sqrt(float(part.log_ratio_R.m2[index]) / tokens),
        "log_ratio_min": float(part.min_R[index]),
        "log_ratio_max": float(part.max_R[index]),
        "kl_k3": scaled_mean(part.k3_R, index, tokens),
        "outside_2x": outside_2x / tokens,
        "outside_5x": outside_5x / tokens,
        "infer_complement_mean": complement / tokens,
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _bin_quantiles(summary: Summary, index: int) -> dict[str, float]:
    grid = summary.bin_grid.part(index, size=cell_count(schema.BIN_BITS))
    if len(grid.keys) == 0:
        return {}
    low, high = float(summary.bins.min_R[index]), float(summary.bins.max_R[index])
    return {
        f"log_ratio_q{label}": grid_quantile(grid, Fraction(q, 100), bits=schema.BIN_BITS, low=low, high=high)
        for label, q in (("02", 2), ("50", 50), ("98", 98))
    }
