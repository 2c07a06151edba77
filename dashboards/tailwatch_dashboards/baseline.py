"""The run's own past: the median and its spread over the first steady steps, which every tail is judged
against."""

from __future__ import annotations

import statistics

import polars as pl

from tailwatch_dashboards.types import Baseline, Limits

FIRST_STEP, LAST_STEP = 20, 70
"""The window: after the first steps, which are not steady, and before a run has had time to go wrong."""

ENOUGH = 20
"""Steps inside the window from which it is used; before that the earliest steps stand in."""

FEWEST = 5
"""Fewer steps than this are no baseline."""


def baseline(table: pl.DataFrame, *, limits: Limits) -> Baseline | None:
    """Median and median absolute deviation (MAD, unscaled) per metric over steps 20-70, counted from the
    run's first.

    Steps whose kl_k3 is over the class's watch line are left out: a run is not compared with its own illness.
    While the window has fewer than 20 quiet steps the earliest 20 quiet ones stand in, and where there are
    not even 5 of those, the first 5 as they are.

    Args:
        table: column `step` ascending and Float64 metric columns, null where missing; not downsampled at its
            start.
        limits: the lines of the run's class.

    Returns:
        None where fewer than 5 steps exist.
    """
    if table.height < FEWEST:
        return None
    window = _window(table, limits=limits)
    median, mad = {}, {}
    for name in window.columns:
        values = [value for value in window[name].to_list() if value is not None]
        if name == "step" or len(values) < FEWEST:
            continue
        median[name] = statistics.median(values)
        mad[name] = statistics.median(abs(value - median[name]) for value in values)
    steps = [int(step) for step in window["step"]]
    return Baseline(steps=tuple(steps), median=median, mad=mad)


def _window(table: pl.DataFrame, *, limits: Limits) -> pl.DataFrame:
    """The steps a baseline stands on."""
    quiet = table
    if limits.k3_watch is not None and "kl_k3" in table.columns:
        quiet = table.filter(pl.col("kl_k3").is_null() | (pl.col("kl_k3") <= limits.k3_watch))
    start = int(table["step"][0])
    window = quiet.filter(pl.col("step").is_between(start + FIRST_STEP, start + LAST_STEP))
    if window.height >= ENOUGH:
        return window
    earliest = quiet.head(ENOUGH)
    return earliest if earliest.height >= FEWEST else table.head(FEWEST)
