"""Sparklines as SVG geometry, made on the server: no script draws them and no inline style colours them
(classes do)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, PAD = 160.0, 40.0, 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparkline:
    """Path data in a WIDTH x HEIGHT view box; y grows downwards."""

    paths: tuple[str, ...]
    """One path per curve, broken at gaps."""
    band: tuple[float, float] | None
    """Top and height of the baseline band."""
    last: tuple[tuple[float, float], ...]
    """Where each curve ends."""


def sparkline(
    curves: Sequence[Sequence[float | None]],
    *,
    band: tuple[float, float] | None = None,
    scale: str = "linear",
    least: float = 0.0,
) -> Sparkline | None:
    """Curves that share one scale, and the baseline's low and high.

    Args:
        curves: of equal length; None where missing.
        scale: linear, log (values <= 0 become gaps) or arcsinh.
        least: smallest span of the scaled axis, so that a flat curve looks flat.

    Returns:
        None where no curve has a point.
    """
    place = _SCALES[scale]
    placed = [[None if value is None else place(value) for value in curve] for curve in curves]
    present = [y for curve in placed for y in curve if y is not None]
    if not present:
        return None
    edges = [y for y in (place(value) for value in band or ()) if y is not None]
    low, high = min(present + edges), max(present + edges)
    slack = max(0.0, least - (high - low)) / 2
    low, high = low - slack, high + slack
    span = (high - low) or 1.0

    def down(y: float) -> float:
        return round(PAD + (HEIGHT - 2 * PAD) * (1 - (y - low) / span), 1)

    length = max(len(curve) for curve in placed)
    right = WIDTH - 2 * PAD

    def across(index: int) -> float:
        return round(PAD + right * (index / (length - 1) if length > 1 else 1.0), 1)

    paths = tuple(_path([(across(i), None if y is None else down(y)) for i, y in enumerate(curve)]) for curve in placed)
    ends = tuple((across(i), down(y)) for curve in placed for i, y in [_last(curve)] if y is not None)
    drawn_band = (down(edges[1]), max(1.0, round(down(edges[0]) - down(edges[1]), 1))) if len(edges) == 2 else None
    return Sparkline(paths=paths, band=drawn_band, last=ends)


def _path(points: list[tuple[float, float | None]]) -> str:
    """SVG path data; the pen lifts over gaps."""
    parts, pen = [], False
    for x, y in points:
        if y is not None:
            parts.append(f"{'L' if pen else 'M'}{x:g} {y:g}")
        pen = y is not None
    return "".join(parts)


def _last(curve: list[float | None]) -> tuple[int, float | None]:
    """The last point a curve has."""
    return next(((i, curve[i]) for i in range(len(curve) - 1, -1, -1) if curve[i] is not None), (0, None))


_SCALES: dict[str, Callable[[float], float | None]] = {
    "linear": lambda value: value,
    "log": lambda value: math.log10(value) if value > 0 else None,
    "arcsinh": lambda value: math.asinh(value / 0.1),
}
