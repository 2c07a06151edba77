"""The slow truth: every formula of this package once more, with Python numbers and loops.

Nothing here is fast or shares code with what it checks. Lists stand for tensors: `hidden[b][t][d]`, `logprobs[b][t]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_WORD = 1 << 32


def stream_key(fields: Sequence[int]) -> list[int]:
    """The two signed 32-bit words that key one forward of one layer, from (seed, step, micro-batch, forward, rank,
    layer)."""
    state = 0
    for value in fields:
        state = (3 * state + value + 0x9E3779B97F4A7C15) % (1 << 64)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % (1 << 64)
        state ^= state >> 31
    return [_signed(state % _WORD), _signed(state >> 32)]


def normal(key: Sequence[int], *, token: int, feature: int, features: int) -> float:
    """The standard normal of one feature of one token."""
    half = (features + 1) // 2
    column = feature % half
    radius_bits = _hash(key, token=token, counter=column)
    angle_bits = _hash(key, token=token, counter=column + half)
    radius = math.sqrt(-2 * math.log(((radius_bits % (1 << 31)) + 1) / (1 << 31)))
    angle = math.pi * _signed(angle_bits) / (1 << 31)
    return radius * (math.cos(angle) if feature < half else math.sin(angle))


def perturbed(
    hidden: Sequence[Sequence[Sequence[float]]], *, key: Sequence[int], sigma: float, relative: bool
) -> list[list[list[float]]]:
    """hidden + sigma * RMS(hidden) * z, token by token in memory order."""
    token = 0
    result = []
    for sequence in hidden:
        rows = []
        for state in sequence:
            size = math.sqrt(sum(value * value for value in state) / len(state)) if relative else 1.0
            noise = [normal(key, token=token, feature=d, features=len(state)) for d in range(len(state))]
            rows.append([value + sigma * size * z for value, z in zip(state, noise, strict=True)])
            token += 1
        result.append(rows)
    return result


def _hash(key: Sequence[int], *, token: int, counter: int) -> int:
    first_key, second_key = (word % _WORD for word in key)
    low = token % _WORD
    first = _mix(_mix((low + first_key) % _WORD) ^ second_key)
    second = _mix((_mix(low ^ second_key) + first_key) % _WORD)
    return _mix(_mix((counter + first) % _WORD) ^ second)


def _mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x21F0AAAD % _WORD
    x ^= x >> 15
    x = x * 0x735A2D97 % _WORD
    return x ^ (x >> 15)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word


# --- objectives ---------------------------------------------------------------------------------------------------

_Rows = Sequence[Sequence[float]]


def level_ratios(d: Sequence[float], *, level: str) -> list[float]:
    """Log-ratio of each token of one sequence at a level, from d = log numerator - log denominator."""
    if level == "token":
        shared = list(d)
    elif level == "cumulative":
        shared = [math.fsum(d[: t + 1]) for t in range(len(d))]
    else:
        total = math.fsum(d)
        shared = [total / len(d) if level == "geometric" else total] * len(d)
    return [min(20.0, max(-20.0, value)) for value in shared]


def objective(
    name: str,
    *,
    logprobs: _Rows,
    infer: _Rows,
    old: _Rows,
    advantages: Sequence[float],
    low: float,
    high: float,
    dual: float | None,
    moved: _Rows | None = None,
    weight_level: str = "token",
    weight_low: float = 0.0,
    weight_high: float = math.inf,
) -> float:
    """The loss of an objective over sequences without padding.

    Args:
        name: as in `loss.OBJECTIVES`.
        logprobs: log pi, where everything is held that has no gradient.
        infer: log mu.
        old: log old.
        advantages: one per sequence.
        low: smallest unclipped ratio.
        high: largest unclipped ratio.
        dual: dual clip; None: none.
        moved: log pi where it has a gradient; None: as `logprobs`. Differences in it are the gradient.
        weight_level: level of w (TIS, MIS).
        weight_low: smallest w that is kept (MIS, IcePop).
        weight_high: largest w that is kept, or the cap (TIS).
    """
    level = {"sequence": "sequence", "geometric": "geometric", "cumulative": "cumulative", "gspo": "geometric"}
    denominator = infer if name in {"token", "sequence", "geometric", "cumulative", "bypass"} else old
    sequences = []
    for b, row in enumerate(logprobs):
        d = [x - y for x, y in zip(row, denominator[b], strict=True)]
        shared = level_ratios(d, level=level.get(name, "token"))
        w = level_ratios([x - y for x, y in zip(old[b], infer[b], strict=True)], level=weight_level)
        losses = []
        for t, frozen in enumerate(row):
            x = frozen if moved is None else moved[b][t]
            weight = _weight(name, math.exp(w[t]), low=weight_low, high=weight_high)
            if name == "cispo":
                losses.append(-min(high, max(low, math.exp(shared[t]))) * advantages[b] * x)
            else:
                ratio = math.exp(shared[t] + x - frozen)
                losses.append(weight * _clipped(ratio, advantages[b], low=low, high=high, dual=dual))
        sequences.append(losses)
    if name == "gspo":
        return math.fsum(math.fsum(losses) / len(losses) for losses in sequences) / len(sequences)
    return math.fsum(map(math.fsum, sequences)) / sum(map(len, sequences))


def _weight(name: str, w: float, *, low: float, high: float) -> float:
    if name == "tis":
        return min(w, high)
    if name in {"mis", "icepop"}:
        return w if low <= w <= high else 0.0
    return 1.0


def _clipped(ratio: float, advantage: float, *, low: float, high: float, dual: float | None) -> float:
    loss = max(-advantage * ratio, -advantage * min(high, max(low, ratio)))
    if advantage < 0 and dual is not None:
        loss = min(loss, -advantage * dual)
    return loss
