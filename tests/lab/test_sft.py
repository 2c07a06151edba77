from __future__ import annotations

import random

import pytest
import torch

from lab import sft, task
from lab.evaluate import evaluate
from lab.model import Policy, load_policy
from lab.train import CHECKPOINT


def test_examples_are_shifted_by_one_and_the_prompt_is_ignored() -> None:
    inputs, targets = sft.draw_examples(5, rng=random.Random(0))
    assert inputs.shape == targets.shape == (5, task.PROMPT_LENGTH + task.RESPONSE_LENGTH - 1)
    response_from = task.PROMPT_LENGTH - 1
    assert (targets[:, :response_from] == -100).all()
    assert torch.equal(targets[:, response_from:-1], inputs[:, response_from + 1 :])
    for row in range(5):
        text = task.decode(inputs[row, : task.PROMPT_LENGTH].tolist())
        problem = tuple(int(number) for number in text.removesuffix(":").split("+"))
        response = task.decode(targets[row, response_from:].tolist())
        assert task.reward(problem, response=response) == 1.0


def test_giving_up_says_how_far_it_came() -> None:
    with pytest.raises(RuntimeError, match=r"after 2 updates, wanted 0\.5"):
        sft.train(seed=0, stop_accuracy=0.5, max_updates=2)


def test_evaluation_is_fixed_and_tells_policies_apart() -> None:
    policy = load_policy(CHECKPOINT)
    accuracy = evaluate(policy)
    assert 0.35 <= accuracy < 0.7
    assert accuracy == evaluate(policy)
    torch.manual_seed(0)
    assert evaluate(Policy(), count=32) < 0.1
