"""What-if: what a correction would do to a step, read from the grids of its summary.

Shares of tokens are exact where the bound is one of `schema.RATIO_THRESHOLDS` (or its inverse) and the sign of the
advantage does not matter. Elsewhere the cell that holds the bound is split evenly, and `share_error` says how much of
the batch that cell holds. Sums of weights take d to be uniform inside a cell. A combination of corrections is refused:
a histogram of tokens and one of sequences do not say which token is in which sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tailwatch_collectors.summary.grid import cell_count
from tailwatch_service.statistics.cells import (
    LARGEST_LOG,
    Cells,
    Cut,
    Float64Array,
    Parts,
    cells_of,
    cut_at,
    joined,
    mean_exp,
    part_beyond,
    reach_of_budget,
)
from tailwatch_service.statistics.corrections import CORRECTIONS, Bound, Correction
from tailwatch_service.statistics.ess import ess_sequence, ess_token
from tailwatch_service.statistics.values import NO_SEQUENCES, NO_TOKENS, sequence_mean, token_mean

NO_SIGNS = "depends on the sign of each advantage, which was not sent: the share is the most it can touch"
_GRID_OF = {"product": "S", "geometric": "g", "smallest": "min"}


class WhatIfError(ValueError):
    """A correction that cannot be replayed; `field` names what is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class SignShare:
    """What is touched among the tokens or sequences of one sign of the advantage."""

    sign: str
    count: int
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
    """Of the units that it touches; where advantages were not sent, the most that a clip can."""
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
    """Of the raw ratios, in (0, 1]; 1 where what stays weighs 1."""
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
        return NO_TOKENS if of_tokens else NO_SEQUENCES
    parts = _parts(summary, known)
    bounds = _with_reach(bounds, joined(parts))
    low, high = _log(bounds["lower"], -math.inf), _log(bounds["upper"], math.inf)
    divided, exact = _divided(summary, joined(parts), bounds) if of_tokens else ((None, None), False)
    cuts = [cut_at(part, low, high, parts=divided) for part in parts]
    touched = [_touched(known, cut, sign) for cut, sign in zip(cuts, schema.ADVANTAGE_SIGNS, strict=True)]
    by_sign = _by_sign(parts, touched)
    unknown = known.effect == "clips" and any(one.sign == "unknown" for one in by_sign)
    after = None if unknown and of_tokens else _weights(known, cuts, low, high, divided)
    ess_before, mean_before = _before(summary, known, parts, count)
    certain = exact and (known.effect != "clips" or len(by_sign) == 1)
    return Outcome(
        correction=name,
        **bounds,
        unit="tokens" if of_tokens else "sequences",
        count=count,
        share=sum(units for units, _ in touched) / count,
        above=sum(cut.above for cut in cuts) / count,
        below=sum(cut.below for cut in cuts) / count,
        share_error=0.0 if certain else sum(cut.unsure for cut in cuts) / count,
        token_share=sum(tokens for _, tokens in touched) / sum(float(part.tokens_K.sum()) for part in parts),
        signs=by_sign,
        ess_before=ess_before,
        ess_after=after.ess(count) if after else None,
        mean_before=mean_before,
        mean_after=after.mean(count) if after else None,
        missing=None if after else NO_SIGNS,
    )


@dataclass(frozen=True, slots=True)
class _Weights:
    """Sums of weights and of their squares, in units of e^shift and its square."""

    shift: float
    total: float
    square: float

    def ess(self, count: int) -> float:
        """(sum w)^2 / (n sum w^2); 0 where nothing is left."""
        return min(1.0, self.total**2 / (count * self.square)) if self.square > 0 else 0.0

    def mean(self, count: int) -> float | None:
        """Mean weight; None where it exceeds float64."""
        return self.total / count * math.exp(self.shift) if self.shift < LARGEST_LOG else None


def _parts(summary: Summary, known: Correction) -> list[Cells]:
    """The grid of the correction's quantity, one part per sign of the advantage."""
    signs = range(len(schema.ADVANTAGE_SIGNS))
    if known.quantity == "token":
        low = float(summary.minima[schema.MINIMA.index("log_ratio")])
        high = float(summary.maxima[schema.MAXIMA.index("log_ratio")])
        size = cell_count(schema.TOKEN_BITS)
        of_sign = (summary.sign_grid.part(sign, size=size) for sign in signs)
        return [cells_of(grid, bits=schema.TOKEN_BITS, low=low, high=high) for grid in of_sign]
    name = _GRID_OF[known.quantity]
    return [cells_of(summary.sequence_part(name, sign), bits=schema.SEQUENCE_BITS[name]) for sign in signs]


def _with_reach(bounds: dict[str, float | None], cells: Cells) -> dict[str, float | None]:
    """The bounds; of a budget those that it comes to."""
    if bounds["budget"] is None:
        return bounds
    reach = min(reach_of_budget(cells, bounds["budget"]), LARGEST_LOG)
    return bounds | {"lower": math.exp(-reach), "upper": math.exp(reach)}


def _log(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else math.log(bound)


def _divided(summary: Summary, cells: Cells, bounds: Mapping[str, float | None]) -> tuple[Parts, bool]:
    """How much of the cell that each bound divides is beyond it, where tokens beyond that bound were counted, and
    whether they were for both."""
    parts: list[float | None] = []
    exact = True
    for name, counts in (("lower", summary.below), ("upper", summary.above)):
        bound = bounds[name]
        ratio = math.nan if bound is None else bound if name == "upper" else 1 / bound
        index = next((i for i, C in enumerate(schema.RATIO_THRESHOLDS) if math.isclose(C, ratio)), None)
        if bound is None or index is None:
            parts.append(None)
            exact = exact and bound is None
        else:
            count = float(counts[index])
            parts.append(part_beyond(cells, math.log(bound), count=count, above=name == "upper"))
    return (parts[0], parts[1]), exact


def _touched(known: Correction, cut: Cut, sign: str) -> tuple[float, float]:
    """(units, tokens) touched in one part. A clip acts on the side that the advantage points to: of an unknown
    advantage on both, of a zero one on none."""
    up, down = True, True
    if known.effect == "clips":
        up, down = sign in {"positive", "unknown"}, sign in {"negative", "unknown"}
    return up * cut.above + down * cut.below, up * cut.above_tokens + down * cut.below_tokens


def _before(summary: Summary, known: Correction, parts: Sequence[Cells], count: int) -> tuple[float, float | None]:
    """ESS and mean of the weights without the correction."""
    if not known.weighted:
        return 1.0, 1.0
    if known.quantity == "geometric":
        raw = _sum_weights([(part.low_K, part.high_K, part.units_K) for part in parts])
        return raw.ess(count), raw.mean(count)
    of_tokens = known.quantity == "token"
    mean = token_mean(summary)("ratio") if of_tokens else sequence_mean(summary)("ratio")
    exact = ess_token(summary) if of_tokens else ess_sequence(summary)
    return exact, mean if math.isfinite(mean) else None


def _weights(known: Correction, cuts: Sequence[Cut], low: float, high: float, divided: Parts) -> _Weights:
    """Sums over all units of what each weighs after the correction."""
    pieces: list[_Piece] = []
    for cut, sign in zip(cuts, schema.ADVANTAGE_SIGNS, strict=True):
        # What is outside on the other side of a clip keeps its gradient and its weight.
        down = low if known.effect != "clips" or sign in {"negative", "unknown"} else -math.inf
        up = high if known.effect != "clips" or sign in {"positive", "unknown"} else math.inf
        own = cut if (down, up) == (low, high) else cut_at(cut.cells, down, up, parts=divided)
        pieces.append((own.low_K, own.high_K, own.units_K))
        if known.effect == "truncates":
            moved = [(bound, units) for bound, units in ((low, cut.below), (high, cut.above)) if units]
            bounds, counts = (np.array([pair[i] for pair in moved]) for i in range(2))
            pieces.append((bounds, bounds, counts))
    if known.weighted:
        return _sum_weights(pieces)
    kept = sum(float(units.sum()) for _, _, units in pieces)
    return _Weights(0.0, kept, kept)


_Piece = tuple[Float64Array, Float64Array, Float64Array]


def _sum_weights(pieces: Sequence[_Piece]) -> _Weights:
    """Sums of e^x and e^2x over stretches (low, high, units), scaled by the largest."""
    low, high, units = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    low, high, units = low[units > 0], high[units > 0], units[units > 0]
    shift = float(high.max(initial=0.0))
    total = float((units * mean_exp(low - shift, high - shift)).sum())
    return _Weights(shift, total, float((units * mean_exp(2 * (low - shift), 2 * (high - shift))).sum()))


def _by_sign(parts: Sequence[Cells], touched: Sequence[tuple[float, float]]) -> tuple[SignShare, ...]:
    found = []
    for sign, part, (units, _) in zip(schema.ADVANTAGE_SIGNS, parts, touched, strict=True):
        total = float(part.units_K.sum())
        if total:
            found.append(SignShare(sign=sign, count=int(total), share=units / total))
    return tuple(found)


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
