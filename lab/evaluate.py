"""Ground truth: how many of a fixed set of problems the training policy solves, sampled at float32.

The rollout reward is blind to a policy that is falling apart until the next weight sync, for it is the old weights
that sample. This is not: it samples from the weights as they are. One draw per problem, always from the same random
numbers; the binomial standard error is about 0.03 at 256 problems.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from lab import task
from lab.engines import Engine
from lab.model import Policy

EVAL_PROBLEMS = 256
_EVAL_SEED = 20_000_003


def prompt_tokens(problems: list[task.Problem]) -> Tensor:
    """[B, P] token ids of the prompts."""
    return torch.tensor([task.encode(task.prompt(problem)) for problem in problems])


def evaluate(policy: Policy, *, count: int = EVAL_PROBLEMS) -> float:
    """Share of the fixed problems that the policy solves, sampled in float32 from its current weights."""
    rng = random.Random(_EVAL_SEED)
    problems = [task.draw_problem(rng) for _ in range(count)]
    engine = Engine("fp32")
    engine.sync(policy, version=0)
    generator = torch.Generator().manual_seed(_EVAL_SEED)
    responses = engine.sample(prompt_tokens(problems), generator=generator).responses()
    rewards = [task.reward(problem, response=response) for problem, response in zip(problems, responses, strict=True)]
    return sum(rewards) / count
