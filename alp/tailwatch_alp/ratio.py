"""The log-ratio an objective is built on: per token, per sequence, its geometric mean, or cumulative.

    token        d_t                                       PPO, arXiv 1707.06347
    sequence     sum of d over the sequence                importance sampling of the whole response
    geometric    mean of d over the sequence               GSPO, arXiv 2507.18071, eq. 7
    cumulative   sum of d up to and with token t           per-decision importance sampling, Precup et al. 2000

The last three have one value for many tokens; the gradient goes through each token's own log-prob only (GSPO-token,
arXiv 2507.18071, eq. 14), so that a token is weighed by the ratio but not pushed by its neighbours.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = ("token", "sequence", "geometric", "cumulative")
LOG_LIMIT = 20.0  # exp(20) = 4.9e8: beyond it a ratio says "gone" and nothing else


def log_ratio(numerator_BT: Tensor, denominator_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """numerator - denominator [B, T] in float32; 0 outside the mask, whatever stands there (NaN, inf, filler). No
    gradient goes into the denominator."""
    clean_BT = torch.where(mask_BT, denominator_BT.detach().float(), 0.0)
    return torch.where(mask_BT, numerator_BT.float(), 0.0) - clean_BT


def at_level(log_ratio_BT: Tensor, mask_BT: Tensor, *, level: str) -> Tensor:
    """The log-ratio [B, T] of a level, clamped to +-20, with the gradient through each token's own log-prob.

    Args:
        log_ratio_BT: what `log_ratio` gave.
        mask_BT: True on response tokens.
        level: one of LEVELS.
    """
    if level == "token":
        value_BT = log_ratio_BT
    else:
        frozen_BT = log_ratio_BT.detach()
        if level == "cumulative":
            shared_BT = frozen_BT.cumsum(-1)
        else:
            shared_B1 = frozen_BT.sum(-1, keepdim=True)
            if level == "geometric":
                shared_B1 = shared_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)
            shared_BT = shared_B1.expand_as(frozen_BT)
        value_BT = shared_BT + (log_ratio_BT - frozen_BT)
    return torch.where(mask_BT, value_BT.clamp(-LOG_LIMIT, LOG_LIMIT), 0.0)
