"""The task: add four two-digit numbers modulo 100, showing the work; the alphabet, the prompts and the reward.

A response such as `58+14=72;72+37=09;09+92=01$` adds any two numbers still standing, in either order, until one is
left. The free order keeps the policy's entropy up without costing reward: a policy with one right answer per
prompt would have no tails to look at. No torch here.
"""

from __future__ import annotations

import random

NUMBERS = 4
"""Numbers in one problem."""

MODULUS = 100
"""Sums are taken modulo this, so that every number has two digits."""

ALPHABET = "0123456789+=;:$ "
"""One token per character. `:` ends the prompt, `$` the response, blank pads behind it."""

EOS = ALPHABET.index("$")
PAD = ALPHABET.index(" ")

PROMPT_LENGTH = 3 * NUMBERS
"""Tokens of every prompt."""

RESPONSE_LENGTH = 9 * (NUMBERS - 1)
"""Tokens of every correct response, `$` included."""

MAX_RESPONSE_LENGTH = RESPONSE_LENGTH + 3
"""Tokens after which sampling gives up on a response."""

Problem = tuple[int, ...]
"""The NUMBERS numbers to add, each 0 .. 99."""

_TOKEN = {character: token for token, character in enumerate(ALPHABET)}


def encode(text: str) -> list[int]:
    """Token ids of a text; raises KeyError with the character that is not in the alphabet."""
    return [_TOKEN[character] for character in text]


def decode(token_ids: list[int]) -> str:
    """Text of token ids, padding included as blanks."""
    return "".join(ALPHABET[token] for token in token_ids)


def draw_problem(rng: random.Random) -> Problem:
    """Draw one problem, uniformly."""
    return tuple(rng.randrange(MODULUS) for _ in range(NUMBERS))


def prompt(problem: Problem) -> str:
    """The prompt of a problem, for example `37+58+14+92:`."""
    return "+".join(f"{number:02d}" for number in problem) + ":"


def draw_solution(problem: Problem, *, rng: random.Random) -> str:
    """One of the many correct responses, uniform over the orders in which to add."""
    standing = list(problem)
    steps = []
    while len(standing) > 1:
        rng.shuffle(standing)
        left, right = standing.pop(), standing.pop()
        total = (left + right) % MODULUS
        steps.append(f"{left:02d}+{right:02d}={total:02d}")
        standing.append(total)
    return ";".join(steps) + "$"


def reward(problem: Problem, *, response: str) -> float:
    """1.0 if the two characters before the first `$` are the sum modulo 100, else 0.0.

    Only the answer counts, not the way to it. A response without `$` was cut off and earns nothing.
    """
    answer, end, _ = response.partition("$")
    return float(end == "$" and answer[-2:] == f"{sum(problem) % MODULUS:02d}")
