"""What-if: what a correction would do to a step, read from the grids of its summary.

Shares are exact where the bound is one of `schema.RATIO_THRESHOLDS` (or its inverse). Elsewhere the cell that holds
the bound is split evenly, and `share_error` says how much of the batch that cell holds. Sums of weights take d to be
uniform inside a cell. A combination of corrections is refused: a histogram of tokens and one of sequences do not say
which token is in which sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import Grid, cell_count, cell_edges, cell_values, zero_cell
from tailwatch_service.statistics.corrections import CORRECTIONS, Bound, Correction
from tailwatch_service.statistics.ess import ess
from tailwatch_service.statistics.ratios import ratios
from tailwatch_service.statistics.values import sequence_mean

Float64Array = NDArray[np.float64]

NO_SIGNS = "depends on the sign of each token's advantage, which the grid of tokens does not hold"
_GRID_OF = {"product": "S", "geometric": "g", "smallest": "min"}
_LARGEST_LOG = 700.0


class WhatIfError(ValueError):
    """A correction that cannot be replayed; `field` names what is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class SignShare:
    """What is touched among the sequences of one sign of the advantage."""

    sign: str
    sequences: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one correction would do to a step."""

    correction: str
    lower: float | None
    upper: float | None
    budget: float | None
    unit: str
    """`tokens` or `sequences`: what the shares and the ESS are of."""
    count: int
    """Units in the step."""
    share: float
    """Of the units that it touches. Of a clip on tokens: outside the bounds, the most it can touch."""
    above: float
    """Share above the upper bound."""
    below: float
    """Share below the lower bound."""
    share_error: float
    """Most that `share` can be off; 0 where it is exact."""
    token_share: float
    """Of the tokens, for what touches sequences; else `share`."""
    signs: tuple[SignShare, ...]
    """By sign of the advantage; empty for tokens, whose grid has no signs."""
    ess_before: float
    """Of the unweighted-by-anything-else ratios, in (0, 1]."""
    ess_after: float | None
    """(sum of weights)² over n times the sum of their squares; None: see `missing`."""
    mean_before: float | None
    """Mean ratio; None where it exceeds float64."""
    mean_after: float | None
    """Mean weight over all units, dropped ones weighing 0."""
    missing: str | None
    """Why there is no ESS after it."""


def check(name: str, *, lower: float | None, upper: float | None, budget: float | None) -> dict[str, float | None]:
    """The bounds a correction is replayed with: those given, else its own.

    Raises:
        WhatIfError: unknown correction, a bound it does not have, or one out of range.
    """
    if name not in CORRECTIONS:
        if any(mark in name for mark in "+,"):
            raise WhatIfError("correction", f"{name!r:.80} combines corrections; {COMBINED}")
        raise WhatIfError("correction", f"{name!r:.80} is not one of {', '.join(CORRECTIONS)}")
    known = CORRECTIONS[name]
    given = {"lower": lower, "upper": upper, "budget": budget}
    made = {field: _bound(name, field, getattr(known, field), value) for field, value in given.items()}
    if made["lower"] is not None and made["upper"] is not None and made["lower"] >= made["upper"]:
        raise WhatIfError("lower", f"{made['lower']:g} is not below the upper bound {made['upper']:g}")
    return made


COMBINED = (
    "only one can be replayed from the summary: the histograms of tokens and of sequences do not say which token is in "
    "which sequence"
)


def what_if(
    summary: Summary,
    name: str,
    *,
    lower: float | None = None,
    upper: float | None = None,
    budget: float | None = None,
) -> Outcome | str:
    """Replay one correction on a step; the reason where the step has nothing to replay it on.

    Raises:
        WhatIfError: as `check`.
    """
    bounds = check(name, lower=lower, upper=upper, budget=budget)
    known = CORRECTIONS[name]
    of_tokens = known.quantity == "token"
    count = summary.tokens if of_tokens else summary.count("sequences_complete")
    if count == 0:
        return "no valid tokens" if of_tokens else "no complete sequences"
    parts = _parts(summary, known)
    if known.effect == "budget":
        # The bounds that the budget comes to: symmetric in d.
        reach = _reach_of_budget(parts[0], float(bounds["budget"] or 0.0))
        low, high = -reach, reach
    else:
        low, high = _log(bounds["lower"], -math.inf), _log(bounds["upper"], math.inf)
    cuts = [_cut(part, low, high) for part in parts]
    before = ess(summary)["ess_token" if of_tokens else "ess_sequence"]
    mean = ratios(summary)["ratio_mean"] if of_tokens else sequence_mean(summary)("ratio")
    if known.quantity == "geometric":
        mean = sequence_mean(summary)("geometric_ratio")
    above, below = (sum(getattr(cut, side) for cut in cuts) for side in ("above", "below"))
    error = sum(cut.unsure for cut in cuts)
    if of_tokens and known.effect != "budget":
        above, below, error = _exact(summary, bounds, above, below, cuts[0])
    touched = [_touched(known, cut, sign) for cut, sign in zip(cuts, _signs(known), strict=True)]
    share = (above + below if of_tokens else sum(units for units, _ in touched)) / count
    weights = None if known.effect == "clips" and of_tokens else _weights(known, cuts, low, high)
    return Outcome(
        correction=name,
        lower=math.exp(low) if known.effect == "budget" else bounds["lower"],
        upper=math.exp(min(high, _LARGEST_LOG)) if known.effect == "budget" else bounds["upper"],
        budget=bounds["budget"],
        unit="tokens" if of_tokens else "sequences",
        count=count,
        share=share,
        above=above / count,
        below=below / count,
        share_error=error / count,
        token_share=share if of_tokens else sum(tokens for _, tokens in touched) / _tokens(cuts),
        signs=() if of_tokens else _by_sign(cuts, touched),
        ess_before=float(before),
        ess_after=None if weights is None else weights.ess(count),
        mean_before=float(mean) if isinstance(mean, float) and math.isfinite(mean) else None,
        mean_after=None if weights is None else weights.mean(count),
        missing=NO_SIGNS if weights is None else None,
    )


# --- cells ---


@dataclass(frozen=True, slots=True)
class _Cells:
    """Occupied cells: d is uniform in [low, high], or equal to both."""

    low: Float64Array
    high: Float64Array
    units: Float64Array
    tokens: Float64Array


@dataclass(frozen=True, slots=True)
class _Cut:
    """Cells cut at two bounds."""

    cells: _Cells
    below: float
    above: float
    unsure: float
    """Units in the cells that a bound divides."""
    below_tokens: float
    above_tokens: float
    inside_low: Float64Array
    inside_high: Float64Array
    inside_units: Float64Array


@dataclass(frozen=True, slots=True)
class _Weights:
    """Sums of weights and of their squares, in units of e^shift and its square."""

    shift: float
    total: float
    square: float

    def ess(self, count: int) -> float:
        return min(1.0, self.total**2 / (count * self.square)) if self.square > 0 else 0.0

    def mean(self, count: int) -> float | None:
        return self.total / count * math.exp(self.shift) if self.shift < _LARGEST_LOG else None


def _parts(summary: Summary, known: Correction) -> list[_Cells]:
    """The grid of the correction's quantity: one part for tokens, one per sign of the advantage for sequences."""
    if known.quantity == "token":
        low = float(summary.minima[schema.MINIMA.index("log_ratio")])
        high = float(summary.maxima[schema.MAXIMA.index("log_ratio")])
        return [_cells(summary.grid, bits=schema.TOKEN_BITS, low=low, high=high)]
    grid = schema.SEQUENCE_GRIDS.index(_GRID_OF[known.quantity]) * len(schema.ADVANTAGE_SIGNS)
    size = cell_count(schema.SEQUENCE_BITS)
    parts = range(grid, grid + len(schema.ADVANTAGE_SIGNS))
    return [_cells(summary.sequence_grid.part(part, size=size), bits=schema.SEQUENCE_BITS) for part in parts]


def _signs(known: Correction) -> Sequence[str]:
    return ("unknown",) if known.quantity == "token" else schema.ADVANTAGE_SIGNS


def _cells(grid: Grid, *, bits: int, low: float = -math.inf, high: float = math.inf) -> _Cells:
    """Cells of a grid, kept within the exact extremes; zero's and the outermost are points."""
    keys, edges, values = grid.keys, cell_edges(bits), cell_values(bits)
    point = (keys == zero_cell(bits)) | (keys == 0) | (keys == cell_count(bits) - 1)
    start = np.where(point, values[keys], np.maximum(edges[keys], low))
    end = np.where(point, values[keys], np.minimum(edges[keys + 1], high))
    counts = grid.counts.astype(np.float64)
    return _Cells(start, np.maximum(start, end), counts[:, 0], counts[:, -1])


def _cut(cells: _Cells, low: float, high: float) -> _Cut:
    below, above = _part_below(cells, low), 1 - _part_below(cells, high, ties=True)
    divided = ((below > 0) & (below < 1)) | ((above > 0) & (above < 1))
    return _Cut(
        cells=cells,
        below=float((below * cells.units).sum()),
        above=float((above * cells.units).sum()),
        unsure=float(cells.units[divided].sum()),
        below_tokens=float((below * cells.tokens).sum()),
        above_tokens=float((above * cells.tokens).sum()),
        inside_low=np.clip(cells.low, low, high),
        inside_high=np.clip(cells.high, low, high),
        inside_units=cells.units * np.maximum(0.0, 1 - below - above),
    )


def _part_below(cells: _Cells, bound: float, *, ties: bool = False) -> Float64Array:
    """Part of each cell below a bound; a cell that is a point and equals it counts with `ties`."""
    width = cells.high - cells.low
    if math.isinf(bound):
        return np.full(len(width), 1.0 if bound > 0 else 0.0)
    point = cells.low <= bound if ties else cells.low < bound
    with np.errstate(divide="ignore", invalid="ignore"):
        part: Float64Array = np.where(width > 0, np.clip((bound - cells.low) / width, 0.0, 1.0), point.astype(float))
    return part


def _reach_of_budget(cells: _Cells, budget: float) -> float:
    """|d| up to which tokens may stay so that the mean of d² over them is within the budget; inf: all."""
    size = np.maximum(np.abs(cells.low), np.abs(cells.high))
    order = np.argsort(size, kind="stable")
    square = (cells.low**2 + cells.low * cells.high + cells.high**2) / 3
    units = cells.units[order]
    mean = np.cumsum(units * square[order]) / np.cumsum(units)
    # The mean grows with the tokens let in, largest last.
    kept = np.flatnonzero(mean <= budget)
    if len(kept) == len(mean):
        return math.inf
    return float(size[order][kept[-1]]) if len(kept) else 0.0


def _exact(
    summary: Summary, bounds: Mapping[str, float | None], above: float, below: float, cut: _Cut
) -> tuple[float, float, float]:
    """Counts beyond the bounds, exact where a bound is a counted one; and what is unsure of the rest."""
    unsure = 0.0
    for side, bound, inverse in (("above", bounds["upper"], False), ("below", bounds["lower"], True)):
        if bound is None:
            continue
        ratio = 1 / bound if inverse else bound
        index = next((i for i, C in enumerate(schema.RATIO_THRESHOLDS) if math.isclose(C, ratio)), None)
        if index is None:
            unsure += _units_at(cut.cells, math.log(bound))
        elif side == "above":
            above = float(summary.above[index])
        else:
            below = float(summary.below[index])
    return above, below, unsure


def _units_at(cells: _Cells, bound: float) -> float:
    return float(cells.units[(cells.low < bound) & (bound < cells.high)].sum())


# --- what is touched, and what weighs what ---


def _touched(known: Correction, cut: _Cut, sign: str) -> tuple[float, float]:
    """(units, tokens) touched in one part. A clip acts on the side that the advantage points to; of an unknown
    advantage on both, of a zero one on none."""
    up, down = True, True
    if known.effect == "clips" and known.quantity != "token":
        up, down = sign in {"positive", "unknown"}, sign in {"negative", "unknown"}
    return up * cut.above + down * cut.below, up * cut.above_tokens + down * cut.below_tokens


def _weights(known: Correction, cuts: Sequence[_Cut], low: float, high: float) -> _Weights:
    """Sums over all units of what each weighs after the correction."""
    pieces: list[tuple[Float64Array, Float64Array, Float64Array]] = []
    for cut, sign in zip(cuts, _signs(known), strict=True):
        if known.effect == "clips":
            # Outside on the other side keeps its gradient and its weight.
            pieces.append(_kept_by_clip(cut.cells, sign, low, high))
            continue
        pieces.append((cut.inside_low, cut.inside_high, cut.inside_units))
        if known.effect == "truncates":
            for bound, units in ((low, cut.below), (high, cut.above)):
                if units:
                    pieces.append((np.array([bound]), np.array([bound]), np.array([units])))
    start, end, units = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    start, end = (start[units > 0], end[units > 0]) if known.weighted else (np.zeros(0), np.zeros(0))
    units = units[units > 0]
    if not known.weighted:
        return _Weights(0.0, float(units.sum()), float(units.sum()))
    shift = max(0.0, float(end.max(initial=0.0)))
    return _Weights(
        shift,
        float((units * _mean_exp(start - shift, end - shift)).sum()),
        float((units * _mean_exp(2 * (start - shift), 2 * (end - shift))).sum()),
    )


def _kept_by_clip(cells: _Cells, sign: str, low: float, high: float) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Cells and their units without what the clip takes the gradient from."""
    cut = _cut(
        cells,
        low if sign in {"negative", "unknown"} else -math.inf,
        high if sign in {"positive", "unknown"} else math.inf,
    )
    return cut.inside_low, cut.inside_high, cut.inside_units


def _mean_exp(low: Float64Array, high: Float64Array) -> Float64Array:
    """Mean of e^x over [low, high]."""
    width = high - low
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean: Float64Array = np.exp(low) * np.where(width > 0, np.expm1(width) / width, 1.0)
    # A cell wider than float64 reaches from 0: its mean is e^high / width.
    return np.where(width > _LARGEST_LOG, np.exp(high) / np.maximum(width, 1.0), mean)


def _by_sign(cuts: Sequence[_Cut], touched: Sequence[tuple[float, float]]) -> tuple[SignShare, ...]:
    found = []
    for sign, cut, (units, _) in zip(schema.ADVANTAGE_SIGNS, cuts, touched, strict=True):
        total = float(cut.cells.units.sum())
        if total:
            found.append(SignShare(sign=sign, sequences=int(total), share=units / total))
    return tuple(found)


def _tokens(cuts: Sequence[_Cut]) -> float:
    return sum(float(cut.cells.tokens.sum()) for cut in cuts)


def _log(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else math.log(bound)


def _bound(name: str, field: str, known: Bound | None, value: float | None) -> float | None:
    if known is None:
        if value is not None:
            raise WhatIfError(field, f"{name} has no {field}")
        return None
    if value is None:
        return known.default
    if not known.least <= value <= known.most:
        raise WhatIfError(field, f"{value:g} is outside {known.least:g} .. {known.most:g}")
    return value
