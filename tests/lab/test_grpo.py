from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lab.grpo import CLIP_HIGH, CLIP_LOW, DUAL_CLIP, denominator, group_advantage, policy_loss


def _ragged(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs_BT = -torch.rand(6, 5, generator=generator) * 3
    old_BT = logprobs_BT + torch.randn(6, 5, generator=generator) * 1.5
    advantage_B = torch.randn(6, generator=generator)
    mask_BT = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
    return logprobs_BT, old_BT, advantage_B, mask_BT


def _naive(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> tuple[float, float]:
    """The objective token by token; a token is clipped where moving its log-prob does not move its loss."""

    def token_loss(ratio: float, advantage: float) -> float:
        clipped = min(max(ratio, CLIP_LOW), CLIP_HIGH)
        objective = min(ratio * advantage, clipped * advantage)
        if advantage < 0:
            objective = max(objective, DUAL_CLIP * advantage)
        return -objective

    losses, inert = [], []
    for b, advantage in enumerate(advantages.tolist()):
        for t in range(logprobs.shape[1]):
            if mask[b, t]:
                ratio = math.exp(logprobs[b, t].item() - old[b, t].item())
                losses.append(token_loss(ratio, advantage))
                inert.append(token_loss(ratio * 1.0001, advantage) == token_loss(ratio * 0.9999, advantage))
    return sum(losses) / len(losses), sum(inert) / len(inert)


def test_advantage_by_hand() -> None:
    advantage = group_advantage(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]))
    spread = math.sqrt(3) / 4
    expected = torch.tensor([[0.75 / spread, *[-0.25 / spread] * 3], [-1.0, 1.0, 1.0, -1.0]])
    torch.testing.assert_close(advantage, expected, rtol=1e-5, atol=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    assert torch.equal(group_advantage(torch.ones(2, 8)), torch.zeros(2, 8))


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    logprobs_BT, _, advantage_B, mask_BT = _ragged(0)
    logprobs_BT.requires_grad_()
    result = policy_loss(logprobs_BT, old_logprobs_BT=logprobs_BT.detach(), advantage_B=advantage_B, mask_BT=mask_BT)
    result.loss.backward()  # type: ignore[no-untyped-call]
    expected = -advantage_B[:, None] * mask_BT / mask_BT.sum()
    torch.testing.assert_close(logprobs_BT.grad, expected)
    assert result.clip_fraction == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_against_a_naive_loop(seed: int) -> None:
    logprobs_BT, old_BT, advantage_B, mask_BT = _ragged(seed)
    result = policy_loss(logprobs_BT, old_logprobs_BT=old_BT, advantage_B=advantage_B, mask_BT=mask_BT)
    loss, inert = _naive(logprobs_BT, old_BT, advantage_B, mask_BT)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.clip_fraction == pytest.approx(inert)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (0.5, 1.0, -0.5),
        (2.0, 1.0, 0.0),  # above CLIP_HIGH
        (0.5, -1.0, 0.0),  # below CLIP_LOW
        (5.0, -1.0, 5.0),
        (11.0, -1.0, 0.0),  # above DUAL_CLIP
    ],
)
def test_gradient_on_each_side_of_each_clip(ratio: float, advantage: float, slope: float) -> None:
    logprobs_BT = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = policy_loss(
        logprobs_BT,
        old_logprobs_BT=torch.zeros(1, 1),
        advantage_B=torch.tensor([advantage]),
        mask_BT=torch.ones(1, 1, dtype=torch.bool),
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad.item() == pytest.approx(slope, rel=1e-5)
    assert result.clip_fraction == float(slope == 0.0)


def test_what_lies_behind_the_mask_changes_nothing() -> None:
    logprobs_BT, old_BT, advantage_B, mask_BT = _ragged(1)
    poisoned_BT = torch.where(mask_BT, logprobs_BT, float("inf"))
    clean, poisoned = (
        policy_loss(lp, old_logprobs_BT=old_BT, advantage_B=advantage_B, mask_BT=mask_BT)
        for lp in (logprobs_BT, poisoned_BT)
    )
    assert torch.equal(clean.loss, poisoned.loss)
    assert clean.clip_fraction == poisoned.clip_fraction


def test_the_arms_differ_in_the_denominator() -> None:
    infer_BT, train_BT = torch.zeros(1, 2), torch.ones(1, 2)
    assert denominator("grpo", infer_logprobs_BT=infer_BT, train_logprobs_BT=train_BT) is train_BT
    assert denominator("bypass", infer_logprobs_BT=infer_BT, train_logprobs_BT=train_BT) is infer_BT
