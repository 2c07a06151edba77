"""One row of the table of aliases, and the tool it belongs to.

`exact` says that the tool's definition is ours: on the same tokens the two numbers agree to the tool's precision,
except where a clamp that the row names acts. Everything else is approximate and says what differs, or has no metric
and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Transform = Literal["identity", "negate", "half", "double", "reciprocal", "complement", "log10p1"]

TRANSFORMS: Mapping[Transform, Callable[[float], float]] = {
    "identity": lambda x: x,
    "negate": lambda x: -x,
    "half": lambda x: x / 2,
    "double": lambda x: 2 * x,
    "reciprocal": lambda x: 1 / x if x else math.inf,
    "complement": lambda x: 1 - x,
    "log10p1": lambda x: math.log10(1 + x) if x > -1 else math.nan,
}
"""From the tool's number to ours."""

_SHOWN: Mapping[Transform, str] = {
    "identity": "",
    "negate": "theirs is negated",
    "half": "theirs is twice ours",
    "double": "theirs is half of ours",
    "reciprocal": "theirs is its inverse",
    "complement": "theirs is 1 - ours",
    "log10p1": "theirs is 10^ours - 1",
}

RANK_MEANS = "mean of rank means"
MICRO_MEANS = "mean of micro-batch means"
SEQUENCE_MEANS = "mean of sequence means"

K3_RESOLUTION = 5e-7
"""A float32 mean of e^d - 1 - d is off by 1 % there, by 7 % at 1e-7, and mostly rounding below 1e-8: measured on 20,000
tokens; one of e^2d - 1 is no better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alias:
    """One key of a tool's logs."""

    key: str
    """As the tool writes it, without the prefixes of `Tool`. `*` stands for one part between slashes, `**/` in front
    for any beginning."""
    metric: str | None
    """Our canonical name; None where the key has no counterpart."""
    transform: Transform = "identity"
    """From its number to ours."""
    exact: bool = True
    """Whether the definitions agree."""
    level: str | None = None
    """What is averaged, where it is not ours."""
    pooling: str | None = None
    """How it is averaged, where it is not over all tokens, or sequences, at once."""
    clamp: str | None = None
    """What is cut off before averaging."""
    resolution: float = 0.0
    """Absolute value below which the tool's float32 result is off by over 1 %."""
    note: str | None = None
    """What else differs; or, without a metric, why there is none."""

    @property
    def differs(self) -> str:
        """All that differs in the definition, in words; empty where nothing does."""
        clamp = None if self.clamp is None else f"clamped: {self.clamp}"
        said = (_SHOWN[self.transform], self.level, self.pooling, clamp, self.note)
        return "; ".join(words for words in said if words)

    @property
    def shown(self) -> str:
        """The key with what differs in brackets."""
        key = self.key.removeprefix("**/")
        return f"{key} ({self.differs})" if self.differs else key


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A framework, and the keys of its logs that concern training against inference."""

    id: str
    """For the command line and the API."""
    name: str
    """As its makers write it."""
    version: str
    """What was read."""
    aliases: tuple[Alias, ...]
    prefixes: tuple[str, ...] = ()
    """What its loggers put in front of keys."""


def same(key: str, metric: str, transform: Transform = "identity", **differs: str | float | None) -> Alias:
    """A row whose definition is ours."""
    return _row(key, metric, transform, True, differs)


def near(key: str, metric: str, transform: Transform = "identity", **differs: str | float | None) -> Alias:
    """A row that differs as said."""
    return _row(key, metric, transform, False, differs)


def none(key: str, reason: str) -> Alias:
    """A row without a counterpart."""
    return Alias(key=key, metric=None, exact=False, note=reason)


def _row(key: str, metric: str, transform: Transform, exact: bool, differs: Mapping[str, str | float | None]) -> Alias:
    return Alias(key=key, metric=metric, transform=transform, exact=exact, **differs)  # type: ignore[arg-type]
