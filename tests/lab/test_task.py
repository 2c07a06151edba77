from __future__ import annotations

import random
import re

import pytest

from lab import task


def _problems(count: int) -> list[task.Problem]:
    rng = random.Random(1)
    return [task.draw_problem(rng) for _ in range(count)]


def _follows(problem: task.Problem, response: str) -> bool:
    """Whether a response is a right chain of additions, checked step by step against what is left standing."""
    standing = sorted(problem)
    for step in response.removesuffix("$").split(";"):
        match = re.fullmatch(r"(\d\d)\+(\d\d)=(\d\d)", step)
        if match is None:
            return False
        left, right, total = map(int, match.groups())
        if left not in standing:
            return False
        standing.remove(left)
        if right not in standing or total != (left + right) % 100:
            return False
        standing = sorted([*standing, total])
        standing.remove(right)
    return standing == [sum(problem) % 100]


def test_alphabet_round_trip() -> None:
    assert len(task.ALPHABET) == len(set(task.ALPHABET)) == 16
    assert task.decode(task.encode(task.ALPHABET)) == task.ALPHABET
    assert task.decode([task.EOS, task.PAD]) == "$ "


def test_a_foreign_character_is_named() -> None:
    with pytest.raises(KeyError, match="x"):
        task.encode("12x")


def test_prompt_and_solution_have_the_stated_lengths() -> None:
    assert task.prompt((37, 58, 14, 2)) == "37+58+14+02:"
    rng = random.Random(2)
    for problem in _problems(50):
        assert len(task.prompt(problem)) == task.PROMPT_LENGTH
        assert len(task.draw_solution(problem, rng=rng)) == task.RESPONSE_LENGTH


def test_every_solution_is_a_right_chain_and_earns_the_reward() -> None:
    rng = random.Random(3)
    for problem in _problems(200):
        solution = task.draw_solution(problem, rng=rng)
        assert _follows(problem, solution), solution
        assert task.reward(problem, response=solution) == 1.0


def test_solutions_come_in_many_orders() -> None:
    rng = random.Random(4)
    orders = {task.draw_solution((1, 20, 33, 64), rng=rng) for _ in range(1000)}
    assert len(orders) > 100  # 4 * 3 * 3 * 2 * 2 = 144 are possible


def test_exactly_one_of_the_hundred_answers_is_rewarded() -> None:
    for problem in _problems(20):
        rewarded = [n for n in range(100) if task.reward(problem, response=f"01+02=03;99+01={n:02d}$") == 1.0]
        assert rewarded == [sum(problem) % 100]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("10$", 1.0),
        ("10", 0.0),  # cut off
        ("$10$", 0.0),  # nothing before the first end
        ("0$", 0.0),
        ("1 0$", 0.0),
        ("10$ 99$", 1.0),  # what follows the end does not count
        ("", 0.0),
    ],
)
def test_reward_reads_the_two_characters_before_the_end(response: str, expected: float) -> None:
    assert task.reward((1, 2, 3, 4), response=response) == expected
