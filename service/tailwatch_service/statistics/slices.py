"""Token statistics per slice: by inference probability and by policy lag."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import cell_count
from tailwatch_collectors.summary.slices import BucketStats
from tailwatch_service.statistics.quantiles import grid_quantile
from tailwatch_service.statistics.values import scaled_mean


@dataclass(frozen=True, slots=True)
class SliceRow:
    """One bucket of a slice. Metrics that do not exist in it are absent."""

    label: str
    lower: float | None
    """Lower edge of the bucket, in the slice's unit; None where it has none."""
    upper: float | None
    metrics: dict[str, float]


def slices(summary: Summary) -> dict[str, list[SliceRow]]:
    """`probability` and `lag`, in bucket order; empty lag buckets are left out."""
    edges = schema.PROBABILITY_EDGES
    probability = []
    for index in range(schema.PROBABILITY_BINS):
        metrics = _bucket_metrics(summary.bins, index) | _bin_quantiles(summary, index)
        label = f"{edges[index]:g}-{edges[index + 1]:g}"
        probability.append(SliceRow(label, edges[index], edges[index + 1], metrics))
    return {"probability": probability, "lag": lag_slice(summary)}


def lag_slice(summary: Summary) -> list[SliceRow]:
    """The occupied buckets of policy lag, in order."""
    starts = [*map(float, schema.LAG_EDGES), None, None]
    ends = [*(float(edge) - 1 for edge in schema.LAG_EDGES[1:]), None, None, None]
    return [
        SliceRow(label, starts[index], ends[index], _bucket_metrics(summary.bucket("lag", label), 0))
        for index, label in enumerate(schema.LAG_LABELS)
        if "lag" in summary.slices and label in summary.slices["lag"].labels
    ]


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
