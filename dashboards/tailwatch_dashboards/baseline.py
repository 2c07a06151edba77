"""The run's own past: the median and its spread over the first steady steps, which every tail is judged
against."""

from __future__ import annotations

import statistics

import polars as pl

from tailwatch_dashboards.types import Baseline

FIRST_STEP, LAST_STEP = 20, 70
"""The window: after the first steps, which are not steady, and before a run has had time to go wrong."""

ENOUGH = 20
"""Steps inside the window from which it is used; before that the earliest steps stand in."""

FEWEST = 5
"""Fewer steps than this are no baseline."""


def baseline(table: pl.DataFrame) -> Baseline | None:
    """Median and median absolute deviation (MAD, unscaled) per metric over steps 20-70, counted from the
    run's first step; over its earliest 20 steps while the window has fewer than 20.

    Args:
        table: column `step` ascending and Float64 metric columns, null where missing; not downsampled at its
            start.

    Returns:
        None where fewer than 5 steps exist.
    """
    if table.height < FEWEST:
        return None
    start = int(table["step"][0])
    window = table.filter(pl.col("step").is_between(start + FIRST_STEP, start + LAST_STEP))
    if window.height < ENOUGH:
        window = table.head(ENOUGH)
    median, mad = {}, {}
    for name in window.columns:
        values = [value for value in window[name].to_list() if value is not None]
        if name == "step" or len(values) < FEWEST:
            continue
        median[name] = statistics.median(values)
        mad[name] = statistics.median(abs(value - median[name]) for value in values)
    return Baseline(
        first_step=int(window["step"][0]),
        last_step=int(window["step"][-1]),
        steps=window.height,
        median=median,
        mad=mad,
    )
