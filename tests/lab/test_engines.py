from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lab import task
from lab.engines import Engine, Rollout
from lab.evaluate import prompt_tokens
from lab.model import Policy, load_policy
from lab.numerics import NUMERICS_NAMES, NumericsName
from lab.train import CHECKPOINT


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(CHECKPOINT)


def _rollout(policy: Policy, name: NumericsName, *, seed: int = 0) -> Rollout:
    rng = random.Random(7)
    engine = Engine(name)
    engine.sync(policy, version=3)
    prompts_BP = prompt_tokens([task.draw_problem(rng) for _ in range(32)])
    return engine.sample(prompts_BP, generator=torch.Generator().manual_seed(seed))


def _d(policy: Policy, rollout: Rollout) -> Tensor:
    """Train minus inference log-prob of the response tokens."""
    with torch.no_grad():
        train_BT = policy.response_logprobs(rollout.tokens_BS).logprobs_BT
    return (train_BT - rollout.infer_logprobs_BT)[rollout.mask_BT]


def test_cached_fp32_engine_agrees_with_the_full_forward(policy: Policy) -> None:
    d = _d(policy, _rollout(policy, "fp32"))
    assert d.abs().max() < 1e-4
    assert d.abs().mean() < 1e-5


def test_coarser_numerics_differ_more(policy: Policy) -> None:
    names: tuple[NumericsName, ...] = ("fp32", "int8", "fp8", "int3")
    fp32, int8, fp8, int3 = (_d(policy, _rollout(policy, name)).abs().mean().item() for name in names)
    assert fp32 * 100 < int8 < fp8 < int3


@pytest.mark.parametrize("name", NUMERICS_NAMES)
def test_rollouts_are_well_formed(policy: Policy, name: NumericsName) -> None:
    rollout = _rollout(policy, name)
    assert rollout.version == 3
    assert rollout.infer_logprobs_BT.dtype == torch.float32
    assert rollout.infer_logprobs_BT.shape == rollout.mask_BT.shape
    assert rollout.tokens_BS.shape[1] == task.PROMPT_LENGTH + rollout.mask_BT.shape[1]
    assert (rollout.infer_logprobs_BT <= 0).all()
    assert (rollout.infer_logprobs_BT[~rollout.mask_BT] == 0).all()
    for response, row in zip(rollout.responses(), rollout.tokens_BS.tolist(), strict=True):
        assert response.find("$") in {-1, len(response) - 1}
        assert len(response) <= task.MAX_RESPONSE_LENGTH
        assert set(row[task.PROMPT_LENGTH + len(response) :]) <= {task.PAD}


def test_reported_logprobs_are_those_sampled_from() -> None:
    """The first token of one prompt, drawn many times: frequencies against the reported probabilities."""
    policy = load_policy(CHECKPOINT)
    engine = Engine("int4")
    engine.sync(policy, version=0)
    prompts_BP = prompt_tokens([(37, 58, 14, 92)] * 4000)
    rollout = engine.sample(prompts_BP, generator=torch.Generator().manual_seed(5))
    first_B = rollout.tokens_BS[:, task.PROMPT_LENGTH]
    for token in set(first_B.tolist()):
        chosen_B = first_B == token
        share = float(chosen_B.float().mean())
        probability = float(rollout.infer_logprobs_BT[chosen_B, 0].exp().mean())
        assert abs(share - probability) < 5 * (probability / 4000) ** 0.5


def test_an_engine_keeps_the_weights_of_its_last_sync() -> None:
    policy = load_policy(CHECKPOINT)
    engine = Engine("fp32")
    engine.sync(policy, version=0)
    prompts_BP = prompt_tokens([(1, 2, 3, 4)] * 4)
    before = engine.sample(prompts_BP, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        policy.head.weight.mul_(0.5)
    stale = engine.sample(prompts_BP, generator=torch.Generator().manual_seed(1))
    engine.sync(policy, version=1)
    fresh = engine.sample(prompts_BP, generator=torch.Generator().manual_seed(1))
    assert torch.equal(before.infer_logprobs_BT, stale.infer_logprobs_BT)
    assert fresh.version == 1
    assert not torch.equal(before.infer_logprobs_BT[:, 0], fresh.infer_logprobs_BT[:, 0])


def test_sampling_is_determined_by_its_generator(policy: Policy) -> None:
    first, again, other = (_rollout(policy, "fp8", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.tokens_BS, again.tokens_BS)
    assert torch.equal(first.infer_logprobs_BT, again.infer_logprobs_BT)
    assert not torch.equal(first.tokens_BS[:, :30], other.tokens_BS[:, :30])
