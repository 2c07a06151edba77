"""Single tokens, ready to print: the worst of a step at both ends, and a sequence coloured by d."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tailwatch_dashboards import format as fmt
from tailwatch_dashboards.types import SequenceTokens, WorstRow

LISTED = 12
"""Worst tokens listed at each end."""

SHADES = (0.05, 0.2, math.log(2), 2.0)
"""|d| from which a token is shaded one step darker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstEnd:
    """The worst tokens of one end."""

    title: str
    rows: tuple[WorstRow, ...]
    more: int
    """Further ones that the summary holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCell:
    """One token of a sequence."""

    text: str
    """Its id, or its position where ids were not sent."""
    position: int
    shade: str
    """Class of its colour: up-1 .. up-4, down-1 .. down-4, none, or missing."""
    hint: str
    masked: bool
    chosen: bool


def worst_ends(rows: Sequence[WorstRow]) -> list[WorstEnd]:
    """Both ends, the largest |d| first."""
    ends = []
    for title, inside in (
        ("Less likely to the trainer", [row for row in rows if row.log_ratio < 0]),
        ("More likely to the trainer", [row for row in rows if row.log_ratio > 0]),
    ):
        ends.append(WorstEnd(title=title, rows=tuple(inside[:LISTED]), more=max(0, len(inside) - LISTED)))
    return ends


def sequence_rows(found: SequenceTokens) -> list[TokenCell]:
    """The tokens of a stretch, in order."""
    cells = []
    for index, (infer, train) in enumerate(zip(found.infer_logprobs, found.train_logprobs, strict=True)):
        position = found.first + index
        token = str(found.token_ids[index]) if found.token_ids is not None else None
        d = train - infer
        known = f"token id {token}, " if token is not None else ""
        hint = f"{known}position {position}: d {fmt.number(d)}, infer {fmt.number(infer)}, train {fmt.number(train)}"
        cells.append(
            TokenCell(
                text=token if token is not None else str(position),
                position=position,
                shade=shade(d),
                hint=hint if found.mask[index] else f"{hint}, masked out",
                masked=not found.mask[index],
                chosen=position == found.chosen,
            )
        )
    return cells


def shade(d: float) -> str:
    """The class of a token's colour."""
    if not math.isfinite(d):
        return "missing"
    level = sum(abs(d) >= start for start in SHADES)
    return "none" if level == 0 else f"{'up' if d > 0 else 'down'}-{level}"
