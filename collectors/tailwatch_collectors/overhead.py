"""The overhead we measure of ourselves, and what we give up where it exceeds its budget.

The share is (wall time inside our calls in the trainer's threads + CPU time of our own threads) / wall time, over
windows. Above the budget for two windows in a row the collector goes one level down, below half of it for four it
goes one up:

    full    what was asked for
    edge    summaries instead of tokens
    sample  every 10th step, as summaries
    count   nothing but the counters and the heartbeat

Pure: times are passed in, seconds.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, get_args

WINDOW = 30.0
"""Length of a window, seconds."""

DOWN_AFTER = 2
"""Windows above the budget before a level is given up."""

UP_AFTER = 4
"""Windows below half the budget before a level is taken back."""

SAMPLED_STEP = 10
"""At level `sample` one of so many steps is recorded, the same on all ranks."""

Level = Literal["full", "edge", "sample", "count"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A level given up or taken back."""

    before: Level
    now: Level
    share: float
    """The window's share that decided it."""

    @property
    def down(self) -> bool:
        """True where something was given up."""
        return LEVELS.index(self.now) > LEVELS.index(self.before)


class Meter:
    """Adds up what we cost, and decides the level."""

    def __init__(self, *, budget: float, now: float) -> None:
        self.budget = budget
        """Largest share; 0: no budget, always `full`."""
        self.level: Level = "full"
        self.share: float | None = None
        """Share of the last whole window; None before its end."""
        # Reentrant: a signal handler that records may interrupt its own thread in here.
        self._lock = threading.RLock()
        self._blocked = 0.0
        self._cpu: dict[str, float] = {}
        self._started = now
        self._window_began = now
        self._window_base = 0.0
        self._warm = False
        self._above = 0
        self._below = 0

    def blocked(self, seconds: float) -> None:
        """One of our calls took so long in a thread of the trainer."""
        with self._lock:
            self._blocked += seconds

    def cpu(self, thread: str, seconds: float) -> None:
        """CPU time that one of our threads has used since it began."""
        self._cpu[thread] = seconds

    def skips(self, step: int) -> bool:
        """Whether a batch of this step is left out at the present level."""
        return self.level == "count" or (self.level == "sample" and step % SAMPLED_STEP != 0)

    def total(self, now: float) -> float:
        """The share since the beginning."""
        return self._spent() / max(now - self._started, 1e-9)

    def turn(self, now: float) -> Change | None:
        """End the window where it is over; the change of level that follows from it."""
        if now - self._window_began < WINDOW:
            return None
        spent = self._spent()
        self.share = (spent - self._window_base) / (now - self._window_began)
        self._window_began, self._window_base = now, spent
        if not self._warm:  # imports and the first connection are paid once
            self._warm = True
            return None
        return self._judge(self.share)

    def _spent(self) -> float:
        return self._blocked + sum(self._cpu.values())

    def _judge(self, share: float) -> Change | None:
        if self.budget <= 0:
            return None
        self._above = self._above + 1 if share > self.budget else 0
        self._below = self._below + 1 if share < self.budget / 2 else 0
        at = LEVELS.index(self.level)
        if self._above >= DOWN_AFTER and at + 1 < len(LEVELS):
            step = 1
        elif self._below >= UP_AFTER and at > 0:
            step = -1
        else:
            return None
        self._above = self._below = 0
        before, self.level = self.level, LEVELS[at + step]
        return Change(before=before, now=self.level, share=share)
