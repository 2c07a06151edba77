"""translate(tool, metrics): another tool's log line in our names, and why what is left out has none.

Pure. A number is only as comparable as its definition: every translated row says whether it is exact, and if not what
differs; a key that is not in the table is named too, never guessed from its spelling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tailwatch_service.statistics.aliases import TOOLS, Alias, Tool
from tailwatch_service.statistics.aliases.alias import TRANSFORMS

UNKNOWN_KEY = "not a quantity of training against inference that this table knows"


class UnknownToolError(ValueError):
    """A tool that the table of aliases does not have; lists those it has."""

    def __init__(self, tool: str) -> None:
        super().__init__(f"{tool!r:.80} is not one of {', '.join(TOOLS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """One number in our terms."""

    metric: str
    """Canonical name."""
    value: float
    """Ours; infinite where theirs was."""
    key: str
    """The key it came from."""
    theirs: float
    """The number as logged."""
    exact: bool
    """Whether it is our metric to the tool's precision."""
    note: str
    """What differs; empty where nothing does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unmapped:
    """One key without a counterpart."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation:
    """One log line in our terms; every key is in at least one of the two."""

    tool: str
    """Name of the tool."""
    version: str
    """What its definitions were read from."""
    mapped: tuple[Mapped, ...]
    unmapped: tuple[Unmapped, ...]

    @property
    def values(self) -> dict[str, float]:
        """Canonical name to value; where several keys give one, an exact one."""
        found = {row.metric: row.value for row in self.mapped if not row.exact}
        return found | {row.metric: row.value for row in self.mapped if row.exact}


def tool_of(name: str) -> Tool:
    """The tool of that id or name, in any spelling of case.

    Raises:
        UnknownToolError: there is none.
    """
    for tool in TOOLS.values():
        if name.strip().lower() in {tool.id, tool.name.lower()}:
            return tool
    raise UnknownToolError(name)


def translate(tool: str, metrics: Mapping[str, Any]) -> Translation:
    """Translate one log line.

    Args:
        tool: id or name of the tool that wrote it.
        metrics: its keys and numbers; what is no number is left out and named.

    Raises:
        UnknownToolError: no such tool.
    """
    known = tool_of(tool)
    mapped: list[Mapped] = []
    unmapped: list[Unmapped] = []
    for key, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            unmapped.append(Unmapped(key=key, reason=f"{value!r:.40} is not a number"))
            continue
        rows = aliases_of(known, key)
        if not rows:
            unmapped.append(Unmapped(key=key, reason=UNKNOWN_KEY))
        for row in rows:
            found = _apply(row, key, float(value))
            if isinstance(found, Mapped):
                mapped.append(found)
            else:
                unmapped.append(found)
    derived = _tail_weight(mapped)
    return Translation(
        tool=known.name,
        version=known.version,
        mapped=(*mapped, *derived),
        unmapped=tuple(unmapped),
    )


def aliases_of(tool: Tool, key: str) -> tuple[Alias, ...]:
    """The rows of a key: those written out, else those of the first pattern that fits."""
    for candidate in (key, *(key.removeprefix(prefix) for prefix in tool.prefixes if key.startswith(prefix))):
        literal = tuple(row for row in tool.aliases if row.key == candidate)
        if literal:
            return literal
        for row in tool.aliases:
            if "*" in row.key and _pattern(row.key).fullmatch(candidate):
                return tuple(same for same in tool.aliases if same.key == row.key)
    return ()


@cache
def _pattern(key: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*)", key)))


def _apply(row: Alias, key: str, value: float) -> Mapped | Unmapped:
    if row.metric is None:
        return Unmapped(key=key, reason=row.differs)
    try:
        ours = TRANSFORMS[row.transform](value)
    except OverflowError:
        ours = math.nan
    if math.isnan(ours):
        return Unmapped(key=key, reason=f"{value:g} says nothing about {row.metric}")
    lost = abs(value) < row.resolution
    rounded = f"float32: off by over 1 % below {row.resolution:g}" if lost else ""
    note = "; ".join(words for words in (row.differs, rounded) if words)
    return Mapped(metric=row.metric, value=ours, key=key, theirs=value, exact=row.exact and not lost, note=note)


def _tail_weight(mapped: list[Mapped]) -> list[Mapped]:
    """tail_weight_scalar, which exists for this: 2 k3 / (E|d| / 0.798)^2."""
    k3 = next((row for row in mapped if row.metric == "kl_k3"), None)
    size = next((row for row in mapped if row.metric == "log_ratio_abs_mean"), None)
    if k3 is None or size is None or not size.value > 0:
        return []
    scale = size.value / math.sqrt(2 / math.pi)
    value = 2 * k3.value / scale / scale
    if not math.isfinite(value):
        return []
    return [
        Mapped(
            metric="tail_weight_scalar",
            value=value,
            key=f"{k3.key}, {size.key}",
            theirs=value,
            exact=k3.exact and size.exact,
            note="computed from the two",
        )
    ]
