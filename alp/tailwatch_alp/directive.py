"""What the service tells the trainer to do, as data that was checked.

A directive is absolute: it says what holds from a step on and until when, so that losing one, getting one twice or
getting them out of order changes nothing but the time of a switch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tailwatch_alp.errors import DirectiveError

STATES = ("off", "shadow", "ramp", "on", "decay", "locked")
NOISY_STATES = frozenset({"ramp", "on", "decay"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One instruction."""

    version: int
    """Counts up within a run; an older one than the last seen is ignored."""
    state: str
    """One of STATES; "shadow" asks for a probe and no noise."""
    strength: float
    """Sigma of every chosen layer, in the perturbation's unit; ignored where the state has no noise."""
    layers: str | tuple[int, ...]
    """As `Perturbation(layers=...)`."""
    clip: tuple[float, float] | None
    """Smallest and largest unclipped ratio; None: as the trainer has it."""
    apply_from_step: int
    """First step it holds at."""
    ttl_steps: int
    """For how many steps it holds; then the trainer decays to off by itself."""

    @property
    def noisy(self) -> bool:
        """Whether it wants noise."""
        return self.state in NOISY_STATES

    @property
    def expires_at(self) -> int:
        """First step it no longer holds at."""
        return self.apply_from_step + self.ttl_steps

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Directive:
        """A directive from decoded JSON; fields it does not know are left alone.

        Raises:
            DirectiveError: a field is missing, of a wrong type or out of range.
        """
        state = content.get("state")
        if state not in STATES:
            raise DirectiveError(f"state={state!r}: expected one of {', '.join(STATES)}")
        strength = _number(content, "strength", default=None if state in NOISY_STATES else 0.0)
        if state in NOISY_STATES and not strength > 0:
            raise DirectiveError(f"strength={strength!r} in state {state!r}: expected a positive number")
        return cls(
            version=_integer(content, "version", least=0),
            state=state,
            strength=strength,
            layers=_layers(content.get("layers", "all")),
            clip=_clip(content.get("clip")),
            apply_from_step=_integer(content, "apply_from_step", least=0),
            ttl_steps=_integer(content, "ttl_steps", least=1),
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON takes it."""
        content = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}


def _integer(content: Mapping[str, Any], name: str, *, least: int) -> int:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DirectiveError(f"{name}={value!r}: expected an integer >= {least}")
    return value


def _number(content: Mapping[str, Any], name: str, *, default: float | None) -> float:
    value = content.get(name, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DirectiveError(f"{name}={value!r}: expected a finite number")
    return float(value)


def _layers(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return tuple(value)
    raise DirectiveError(f"layers={value!r}: expected a word or a list of layer numbers")


def _clip(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = (_number({"clip": item}, "clip", default=None) for item in value)
        if 0 <= low <= 1 <= high:
            return low, high
    raise DirectiveError(f"clip={value!r}: expected [low, high] with 0 <= low <= 1 <= high")
