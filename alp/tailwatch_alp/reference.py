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
