"""What a probe may cost, in tokens pushed through the model and in seconds, judged before each piece of work."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tailwatch_alp.errors import ProbeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of a probe; None: none."""

    tokens: int | None = None
    """Tokens of forwards and backwards, one of each counts once."""
    seconds: float | None = None
    """Wall time. Work that has begun is finished."""

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise ProbeError(f"budget {name}={value!r}: expected a positive number")


class Spending:
    """How much of a budget is gone."""

    def __init__(self, budget: Budget | None) -> None:
        self._budget = budget or Budget()
        self._start = time.monotonic()
        self.tokens = 0
        self.exhausted = False

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def allows(self, tokens: int) -> bool:
        """Whether work on so many more tokens may begin; counts them if so."""
        budget = self._budget
        over_tokens = budget.tokens is not None and self.tokens + tokens > budget.tokens
        over_time = budget.seconds is not None and self.seconds >= budget.seconds
        if over_tokens or over_time:
            self.exhausted = True
            return False
        self.tokens += tokens
        return True
