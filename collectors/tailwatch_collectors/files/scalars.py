"""Scalars on their way in: points from files, gathered by step, posted once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tailwatch_collectors.files.service import Service

MAX_NAME = 128
"""Longest name of a scalar, characters."""

POST_NAMES = 512
"""Most numbers of one step in one request."""


class Point(NamedTuple):
    """One number of one step, under the name its tool gave it."""

    step: int
    name: str
    value: float


class PointProblem(NamedTuple):
    """Something in a file that gives no point."""

    reason: str


@dataclass(slots=True)
class Imported:
    """What has become of one file."""

    points: int = 0
    """Numbers stored."""
    steps: int = 0
    missing: int = 0
    """Numbers that are NaN or infinite: a gap, not sent."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Names that were not stored, and why."""
    problems: int = 0
    """Lines, rows or records that could not be read."""
    lost: int = 0
    """Numbers the service refused."""


def gather(
    found: Iterable[Point | PointProblem], *, tell: Callable[[str], None]
) -> tuple[dict[int, dict[str, float]], int]:
    """Points by step and name, the last of equal ones; and how many problems there were.

    Args:
        found: in file order.
        tell: says the first problems, one line each.
    """
    steps: dict[int, dict[str, float]] = {}
    problems = 0
    for one in found:
        if isinstance(one, PointProblem):
            problems += 1
            if problems <= 5:
                tell(one.reason)
            continue
        steps.setdefault(one.step, {})[one.name] = one.value
    return steps, problems


def post(
    steps: dict[int, dict[str, float]],
    *,
    service: Service | None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Imported:
    """Post every step, ascending; storing a number again under its name and step changes nothing.

    Args:
        steps: numbers by step and name.
        service: where to; None: nowhere, only counted.
        progress: told (steps done, steps there are).

    Raises:
        Stopped: broken off while the service did not answer.
    """
    done = Imported()
    for index, step in enumerate(sorted(steps)):
        finite = {name: value for name, value in steps[step].items() if math.isfinite(value)}
        done.missing += len(steps[step]) - len(finite)
        for name in [name for name in finite if not 0 < len(name) <= MAX_NAME]:
            done.ignored[name] = f"its name is {len(name)} characters long, limit {MAX_NAME}"
            del finite[name]
        for values in _chunks(finite):
            _post_one(step, values, service=service, done=done)
        done.steps += bool(finite)
        progress(index + 1, len(steps))
    return done


def _post_one(step: int, values: dict[str, float], *, service: Service | None, done: Imported) -> None:
    if service is None:
        done.points += len(values)
        return
    key = hashlib.sha256(repr((step, sorted(values.items()))).encode()).hexdigest()[:32]
    outcome = service.note("scalars", {"step": step, "values": values}, key=key)
    if outcome.status == "refused":
        done.lost += len(values)
        for name in values:
            done.ignored.setdefault(name, str(outcome.reason))
        return
    ignored = (outcome.content or {}).get("ignored") or []
    for name in ignored:
        done.ignored[str(name)] = "it is the name of a metric that the service computes"
    done.points += len(values) - len(ignored)


def _chunks(values: dict[str, float]) -> Iterator[dict[str, float]]:
    names = list(values)
    for start in range(0, len(names), POST_NAMES):
        yield {name: values[name] for name in names[start : start + POST_NAMES]}
