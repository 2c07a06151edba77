"""Comparisons: how a rule reads one value. Each is a frozen record with one method, (value, context) -> Reading.

Relative ones look at the run's own past at equal lag: all statistics of d saw-tooth with lag between weight syncs,
and a rule that mixes lags is misled by it. Where that past is too short they fall back to an absolute line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tailwatch_service.detection.classes import LADDER, RunClass

HISTORY = 50
"""Most values of the past that a comparison looks at, per lag bucket."""

Direction = Literal["above", "below", "away_from_0", "away_from_1"]
Lines = float | Mapping[RunClass, float | None]
"""One line for all, or one by class; None: this class has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a value is read against."""

    run_class: RunClass
    stale: bool
    """Known to lag behind, or of unknown lag in an asynchronous run."""
    lag: str
    """Lag bucket of the step."""
    history: Sequence[float]
    """Earlier values at equal lag, oldest first, those that broke the rule left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a comparison says of one value."""

    level: int
    """0 quiet, 1 warning, 2 critical."""
    clear: bool
    """Quiet enough to count towards clearing."""
    value: float
    threshold: float
    """Line of the warning, in the metric's unit."""
    baseline: float | None = None
    score: float | None = None
    basis: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """An absolute line, by class. A stale step is held to the next class's line; a class without a line is not read."""

    warning: Lines
    critical: Lines | None = None
    direction: Direction = "above"
    clear: float = 0.8
    """Clears inside this share of the warning line."""

    def read(self, value: float, context: Context) -> Reading | None:
        """The reading; None where the class has no line."""
        warning = _line(self.warning, context)
        critical = math.inf if self.critical is None else _line(self.critical, context)
        if warning is None:
            return None
        basis = "absolute line" if isinstance(self.warning, int | float) else f"line for {_class_of(context)}"
        if self.direction == "below":
            level = 2 if critical is not None and critical < math.inf and value < critical else int(value < warning)
            return Reading(level=level, clear=value > warning / self.clear, value=value, threshold=warning, basis=basis)
        size = {"above": value, "away_from_0": abs(value), "away_from_1": abs(value - 1.0)}[self.direction]
        level = 2 if critical is not None and size > critical else int(size > warning)
        return Reading(level=level, clear=size < self.clear * warning, value=value, threshold=warning, basis=basis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of tokens that should be next to nothing: above a line and, with `factor`, above so many times what is
    usual in this run. A line of its own guards the window in which nobody knows what is usual."""

    warning: float
    critical: float
    factor: float | None = None
    guard_warning: float = 0.0
    """With `factor`: the line while the past is too short."""
    guard_critical: float = 0.0
    min_history: int = 20

    def read(self, value: float, context: Context) -> Reading:
        """The reading."""
        usual, basis = None, "absolute line"
        warning, critical = self.warning, self.critical
        if self.factor is not None and len(context.history) < self.min_history:
            warning, critical = max(warning, self.guard_warning), max(critical, self.guard_critical)
            basis = f"absolute line: {len(context.history)} of {self.min_history} earlier steps"
        elif self.factor is not None:
            usual = statistics.median(context.history)
            warning, critical = max(warning, self.factor * usual), max(critical, self.factor * usual)
            basis = f"{self.factor:g} times the usual share of {_past(context)}"
        level = 2 if value > critical else int(value > warning)
        return Reading(level=level, clear=value <= warning, value=value, threshold=warning, baseline=usual, basis=basis)


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Times the median of the run's own past at equal lag."""

    warning: float
    critical: float
    clear: float = 1.5
    """Clears below this factor."""
    min_history: int = 20

    def read(self, value: float, context: Context) -> Reading | None:
        """The reading; None while the past is too short, or is not above 0."""
        if len(context.history) < self.min_history:
            return None
        median = statistics.median(context.history)
        if median <= 0:
            return None
        factor = value / median
        return Reading(
            level=2 if factor > self.critical else int(factor > self.warning),
            clear=factor < self.clear,
            value=value,
            threshold=self.warning * median,
            baseline=median,
            score=factor,
            basis=_past(context),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RobustZ:
    """Robust z of log10 against the run's own past at equal lag, and material in size; an absolute line guards the
    window in which that past is too short."""

    warning: float
    """z of a warning."""
    critical: float
    clear: float
    """Clears below this z."""
    min_factor: float = 2.0
    """And above this many medians."""
    material: float = 0.0
    """And above this value."""
    min_scale: float = 0.05
    """Smallest spread a z is measured in, decades."""
    min_history: int = 20
    guard: tuple[float, ...] = ()
    """Lines by class for the first window, from the strictest; critical is the line after it. Empty: not judged there.
    A stale step is held to the next line."""

    def read(self, value: float, context: Context) -> Reading | None:
        """The reading; None where there is neither a past nor a guard."""
        if len(context.history) < self.min_history:
            return self._guarded(value, context)
        logs = [_log10(past) for past in context.history]
        median = statistics.median(logs)
        scale = max(1.4826 * statistics.median(abs(log - median) for log in logs), self.min_scale)
        z = (_log10(value) - median) / scale
        typical = 10.0**median
        big = value > self.min_factor * typical and value > self.material
        return Reading(
            level=(2 if z > self.critical else int(z > self.warning)) if big else 0,
            clear=z < self.clear,
            value=value,
            threshold=max(10.0 ** (median + self.warning * scale), self.min_factor * typical, self.material),
            baseline=typical,
            score=z,
            basis=_past(context),
        )

    def _guarded(self, value: float, context: Context) -> Reading | None:
        if not self.guard:
            return None
        rung = min(LADDER.index(context.run_class) + context.stale, len(self.guard) - 2)
        warning, critical = self.guard[rung], self.guard[rung + 1]
        what = f"line for {_class_of(context)}"
        return Reading(
            level=2 if value > critical else int(value > warning),
            clear=value < warning / 2,
            value=value,
            threshold=warning,
            basis=f"{what}: {len(context.history)} of {self.min_history} earlier steps at {_lag_words(context)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Absence:
    """Silence, by the wall clock: so many median step times, and never under a floor."""

    warning_steps: float
    critical_steps: float
    warning_floor_s: float
    critical_floor_s: float

    def read_silence(self, silence_s: float, *, step_s: float) -> Reading:
        """The reading of a silence.

        Args:
            silence_s: seconds since the last step closed.
            step_s: the run's median step time, seconds.
        """
        warning = max(self.warning_floor_s, self.warning_steps * step_s)
        critical = max(self.critical_floor_s, self.critical_steps * step_s)
        return Reading(
            level=2 if silence_s > critical else int(silence_s > warning),
            clear=silence_s <= warning,
            value=silence_s,
            threshold=warning,
            baseline=step_s,
            score=silence_s / step_s if step_s > 0 else None,
            basis=f"{self.warning_steps:g} median step times, at least {self.warning_floor_s:g} s",
        )


StepComparison = Band | Share | Growth | RobustZ
Comparison = StepComparison | Absence

KINDS: Mapping[str, type[Comparison]] = {
    "band": Band,
    "share": Share,
    "growth": Growth,
    "robust_z": RobustZ,
    "absence": Absence,
}
"""Every comparison by the name that configuration uses."""


def _line(lines: Lines, context: Context) -> float | None:
    if isinstance(lines, int | float):
        return float(lines)
    rung = LADDER.index(context.run_class) + context.stale
    return lines.get(LADDER[rung]) if rung < len(LADDER) else None


def _log10(value: float) -> float:
    # Rounding noise of identical engines may be 0; a floor keeps the logarithm and stays far below anything material.
    return math.log10(max(value, 1e-15))


def _class_of(context: Context) -> str:
    return f"stale {context.run_class}" if context.stale else context.run_class


def _lag_words(context: Context) -> str:
    return "unknown lag, which may be mixed" if context.lag == "unknown" else f"lag {context.lag}"


def _past(context: Context) -> str:
    return f"{len(context.history)} earlier steps at {_lag_words(context)}"
