"""GRPO and Bypass: the objectives, as small pure functions on tensors.

The two arms differ in one thing, the denominator of the importance ratio: GRPO divides by the training engine's own
log-probs, recomputed before the first update, and so never sees that another policy sampled; Bypass divides by what
the inference engine reported, so the ratio holds mismatch and staleness and the clip acts on them.

Shapes: P prompts, G responses per prompt, B = P * G sequences, T response tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Arm = Literal["grpo", "bypass"]
ARMS: tuple[Arm, ...] = get_args(Arm)

CLIP_LOW = 0.8
"""Below this ratio a token with negative advantage has no gradient."""

CLIP_HIGH = 1.28
"""Above this ratio a token with positive advantage has no gradient."""

DUAL_CLIP = 10.0
"""Above this ratio a token with negative advantage has no gradient either."""

_STD_FLOOR = 1e-6


class PolicyLoss(NamedTuple):
    """A loss and what clipping did to it."""

    loss: Tensor
    """Scalar, to minimise: the mean over tokens."""
    clip_fraction: float
    """Share of tokens without gradient because of a clip; NaN without tokens."""


def group_advantage(reward_PG: Tensor) -> Tensor:
    """[P, G] rewards, centred and scaled to standard deviation 1 within each prompt's group.

    A group whose rewards are all equal teaches nothing: its advantages are 0.
    """
    centred_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    return centred_PG / (reward_PG.std(1, keepdim=True, correction=0) + _STD_FLOOR)


def denominator(arm: Arm, *, infer_logprobs_BT: Tensor, train_logprobs_BT: Tensor) -> Tensor:
    """The log-probs [B, T] an arm divides by."""
    return train_logprobs_BT if arm == "grpo" else infer_logprobs_BT


def policy_loss(logprobs_BT: Tensor, *, old_logprobs_BT: Tensor, advantage_B: Tensor, mask_BT: Tensor) -> PolicyLoss:
    """Clipped policy-gradient loss, mean over all tokens of the minibatch.

    Per token, with ratio r = exp(logprobs - old_logprobs) and advantage A: the larger of -A r and
    -A clip(r, CLIP_LOW, CLIP_HIGH), and for A < 0 at most -A DUAL_CLIP.
    """
    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    advantage_BT = advantage_B[:, None].expand_as(ratio_BT)
    plain_BT = -advantage_BT * ratio_BT
    clipped_BT = -advantage_BT * ratio_BT.clamp(CLIP_LOW, CLIP_HIGH)
    loss_BT = torch.maximum(plain_BT, clipped_BT)
    ceiling_BT = -advantage_BT * DUAL_CLIP
    loss_BT = torch.where(advantage_BT < 0, torch.minimum(loss_BT, ceiling_BT), loss_BT)
    inert_BT = ((clipped_BT > plain_BT) | ((advantage_BT < 0) & (plain_BT > ceiling_BT))) & mask_BT
    tokens = mask_BT.sum()
    loss = torch.where(mask_BT, loss_BT, 0.0).sum() / tokens
    return PolicyLoss(loss, float(inert_BT.sum() / tokens))
