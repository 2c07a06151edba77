"""The objectives: ALP's four, and the baselines they are compared with. All of one signature, `OBJECTIVES` lists them.

    pi     the policy being trained: perturbed for ALP (its forward ran inside the context), clean for the others
    old    its clean log-probs before the first update of the step, recomputed by the training engine
    mu     what the inference engine reported while sampling
    A      advantage, m mask, r = pi / old, rho = pi / mu, w = old / mu

    token, sequence, geometric, cumulative    clip(rho at that level); ALP, arXiv 2603.19470; no old, no other weight
    grpo      clip(r)                            PPO 1707.06347, GRPO 2402.03300, asymmetric clip DAPO 2503.14476
    gspo      clip(geometric r)                  GSPO 2507.18071, eq. 5-7, 14
    bypass    clip(rho)                          the ratio of `token` on a clean pi
    tis       min(w, C) clip(r)                  Yao et al. 2025, "Your efficient RL framework secretly brings you
                                                 off-policy RL training"
    mis       w 1[lo <= w <= hi] clip(r)         Liu, Li et al. 2025, "When speed kills stability"
    icepop    w 1[a <= w <= b] clip(r), per token   Ling team 2025, 2510.18855; a = 0.5, b = 5
    cispo     stop_grad(min(r, high)) A log pi   MiniMax-M1 2506.13585, eq. 4-5

clip is PPO's pessimistic minimum; for A < 0 the loss is bounded by -A c (dual clip, Ye et al., arXiv 1912.09729).
`bypass` and `token` are the same formula: what differs is whether pi was computed with noise. Every function is checked
against `reference.py`.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from tailwatch_alp.errors import LossInputError
from tailwatch_alp.ratio import LOG_LIMIT, at_level, log_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The trust region of a ratio."""

    low: float
    """Smallest ratio that still has a gradient for A < 0."""
    high: float
    """Largest ratio that still has a gradient for A > 0."""
    dual: float | None
    """Largest ratio that still has a gradient for A < 0; None: no bound."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high or not (self.dual is None or self.dual > 1):
            raise LossInputError(f"{self}: expected 0 <= low <= 1 <= high, and dual > 1 or None")


ALP_CLIP = Clip(low=0.5, high=4.0, dual=10.0)
PPO_CLIP = Clip(low=0.8, high=1.28, dual=10.0)
GSPO_CLIP = Clip(low=1 - 3e-4, high=1 + 4e-4, dual=None)
CISPO_CLIP = Clip(low=0.0, high=1.28, dual=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The tokens of a micro-batch. Outside the mask anything may stand."""

    logprobs_BT: Tensor
    """[B, T] log pi, with its graph."""
    infer_logprobs_BT: Tensor
    """[B, T] log mu."""
    advantages: Tensor
    """[B] or [B, T] A."""
    mask_BT: Tensor
    """[B, T] bool, True on the response tokens that count."""
    old_logprobs_BT: Tensor | None = None
    """[B, T] log old; None: not recomputed, and only the objectives on rho can be had."""

    def __post_init__(self) -> None:
        shape = self.logprobs_BT.shape
        for name in ("infer_logprobs_BT", "mask_BT", "old_logprobs_BT"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise LossInputError(f"{name} has shape {tuple(value.shape)}, logprobs_BT {tuple(shape)}")
        if len(shape) != 2 or self.advantages.shape not in (shape, shape[:1]):
            raise LossInputError(
                f"logprobs_BT has shape {tuple(shape)}, advantages {tuple(self.advantages.shape)}: expected [B, T] and "
                f"[B] or [B, T]"
            )
        if self.mask_BT.dtype != torch.bool:
            raise LossInputError(f"mask_BT is {self.mask_BT.dtype}: expected bool")

    @property
    def advantages_BT(self) -> Tensor:
        """[B, T] A, one per token; 0 outside the mask."""
        spread = self.advantages if self.advantages.dim() == 2 else self.advantages[:, None].expand_as(self.mask_BT)
        return torch.where(self.mask_BT, spread.float(), 0.0)

    def old(self, *, wanted_by: str) -> Tensor:
        """log old.

        Raises:
            LossInputError: it was not given.
        """
        if self.old_logprobs_BT is None:
            raise LossInputError(f"{wanted_by} divides by the recomputed old policy: pass old_logprobs_BT")
        return self.old_logprobs_BT


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss and what became of the tokens in it. Shares are of the tokens in the mask, scalars on the device."""

    loss: Tensor
    """Scalar, to be minimised."""
    ratio_BT: Tensor
    """[B, T] the ratio before clipping, without graph; 1 outside the mask."""
    clipped_low: Tensor
    """Share of tokens without gradient because the ratio is below the clip."""
    clipped_high: Tensor
    """Share without gradient because it is above."""
    dual_clipped: Tensor
    """Share without gradient because of the dual clip."""
    rejected: Tensor
    """Share whose weight is 0 (MIS, IcePop)."""


Function = Callable[..., Objective]


# --- ALP ----------------------------------------------------------------------------------------------------------


def token(inputs: LossInputs, *, clip: Clip = ALP_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Token ratio of the perturbed policy over the inference policy."""
    return _over_inference(inputs, level="token", clip=clip, normaliser=normaliser)


def sequence(inputs: LossInputs, *, clip: Clip = ALP_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Product over the sequence, not length-normalised, one value for all its tokens."""
    return _over_inference(inputs, level="sequence", clip=clip, normaliser=normaliser)


def geometric(inputs: LossInputs, *, clip: Clip = ALP_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Geometric mean over the sequence."""
    return _over_inference(inputs, level="geometric", clip=clip, normaliser=normaliser)


def cumulative(inputs: LossInputs, *, clip: Clip = ALP_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Product up to and with the token."""
    return _over_inference(inputs, level="cumulative", clip=clip, normaliser=normaliser)


# --- baselines ----------------------------------------------------------------------------------------------------


def grpo(inputs: LossInputs, *, clip: Clip = PPO_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Token ratio over the recomputed old policy."""
    return _over_old(inputs, name="grpo", level="token", clip=clip, normaliser=normaliser)


def gspo(inputs: LossInputs, *, clip: Clip = GSPO_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Geometric mean ratio over the old policy; every sequence counts the same, whatever its length."""
    return _over_old(inputs, name="gspo", level="geometric", clip=clip, normaliser=normaliser, by_sequence=True)


def bypass(inputs: LossInputs, *, clip: Clip = PPO_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """Token ratio over the inference policy, no recomputed old policy."""
    return _over_inference(inputs, level="token", clip=clip, normaliser=normaliser)


def tis(
    inputs: LossInputs,
    *,
    clip: Clip = PPO_CLIP,
    normaliser: Tensor | float | None = None,
    level: str = "token",
    cap: float = 2.0,
) -> Objective:
    """GRPO with each token weighed by the truncated w of its level."""
    weight_BT = _old_over_inference(inputs, name="tis", level=level).clamp(max=cap)
    return _over_old(inputs, name="tis", level="token", clip=clip, normaliser=normaliser, weight_BT=weight_BT)


def mis(
    inputs: LossInputs,
    *,
    clip: Clip = PPO_CLIP,
    normaliser: Tensor | float | None = None,
    level: str = "sequence",
    low: float = 0.0,
    high: float = 5.0,
) -> Objective:
    """GRPO with each token weighed by the w of its level, and dropped where w is outside [low, high]."""
    weight_BT = _old_over_inference(inputs, name="mis", level=level)
    kept_BT = _kept(weight_BT, low=low, high=high)
    return _over_old(inputs, name="mis", level="token", clip=clip, normaliser=normaliser, weight_BT=kept_BT)


def icepop(
    inputs: LossInputs,
    *,
    clip: Clip = PPO_CLIP,
    normaliser: Tensor | float | None = None,
    low: float = 0.5,
    high: float = 5.0,
) -> Objective:
    """Two-sided token-level masking of w."""
    kept_BT = _kept(_old_over_inference(inputs, name="icepop", level="token"), low=low, high=high)
    return _over_old(inputs, name="icepop", level="token", clip=clip, normaliser=normaliser, weight_BT=kept_BT)


def cispo(inputs: LossInputs, *, clip: Clip = CISPO_CLIP, normaliser: Tensor | float | None = None) -> Objective:
    """REINFORCE weighed by the clipped ratio: no token loses its gradient."""
    mask_BT = inputs.mask_BT
    ratio_BT = log_ratio(inputs.logprobs_BT.detach(), inputs.old(wanted_by="cispo"), mask_BT)
    ratio_BT = ratio_BT.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
    logprobs_BT = torch.where(mask_BT, inputs.logprobs_BT.float(), 0.0)
    loss_BT = -ratio_BT.clamp(clip.low, clip.high) * inputs.advantages_BT * logprobs_BT
    nothing = _share(torch.zeros_like(mask_BT), mask_BT)
    return Objective(
        loss=_aggregate(loss_BT, mask_BT, normaliser=normaliser),
        ratio_BT=ratio_BT,
        clipped_low=_share(ratio_BT < clip.low, mask_BT),
        clipped_high=_share(ratio_BT > clip.high, mask_BT),
        dual_clipped=nothing,
        rejected=nothing,
    )


OBJECTIVES: Mapping[str, Function] = MappingProxyType(
    {
        function.__name__: function
        for function in (token, sequence, geometric, cumulative, grpo, gspo, bypass, tis, mis, icepop, cispo)
    }
)


# --- what they share ----------------------------------------------------------------------------------------------


def _over_inference(inputs: LossInputs, *, level: str, clip: Clip, normaliser: Tensor | float | None) -> Objective:
    d_BT = log_ratio(inputs.logprobs_BT, inputs.infer_logprobs_BT, inputs.mask_BT)
    return _clipped(inputs, log_ratio_BT=at_level(d_BT, inputs.mask_BT, level=level), clip=clip, normaliser=normaliser)


def _over_old(
    inputs: LossInputs,
    *,
    name: str,
    level: str,
    clip: Clip,
    normaliser: Tensor | float | None,
    weight_BT: Tensor | None = None,
    by_sequence: bool = False,
) -> Objective:
    d_BT = log_ratio(inputs.logprobs_BT, inputs.old(wanted_by=name), inputs.mask_BT)
    log_ratio_BT = at_level(d_BT, inputs.mask_BT, level=level)
    return _clipped(
        inputs,
        log_ratio_BT=log_ratio_BT,
        clip=clip,
        normaliser=normaliser,
        weight_BT=weight_BT,
        by_sequence=by_sequence,
    )


def _old_over_inference(inputs: LossInputs, *, name: str, level: str) -> Tensor:
    d_BT = log_ratio(inputs.old(wanted_by=name).detach(), inputs.infer_logprobs_BT, inputs.mask_BT)
    return at_level(d_BT, inputs.mask_BT, level=level).exp()


def _kept(weight_BT: Tensor, *, low: float, high: float) -> Tensor:
    return torch.where((weight_BT >= low) & (weight_BT <= high), weight_BT, 0.0)


def _clipped(
    inputs: LossInputs,
    *,
    log_ratio_BT: Tensor,
    clip: Clip,
    normaliser: Tensor | float | None,
    weight_BT: Tensor | None = None,
    by_sequence: bool = False,
) -> Objective:
    mask_BT, advantages_BT = inputs.mask_BT, inputs.advantages_BT
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantages_BT * ratio_BT
    held_BT = -advantages_BT * ratio_BT.clamp(clip.low, clip.high)
    loss_BT = torch.maximum(free_BT, held_BT)
    clipped_BT = held_BT > free_BT
    dual_BT = torch.zeros_like(mask_BT)
    if clip.dual is not None:
        bound_BT = -advantages_BT * clip.dual
        dual_BT = (advantages_BT < 0) & (loss_BT > bound_BT)
        loss_BT = torch.where(dual_BT, bound_BT, loss_BT)
    rejected_BT = torch.zeros_like(mask_BT)
    if weight_BT is not None:
        loss_BT = loss_BT * weight_BT
        rejected_BT = weight_BT == 0
    return Objective(
        loss=_aggregate(loss_BT, mask_BT, normaliser=normaliser, by_sequence=by_sequence),
        ratio_BT=ratio_BT.detach(),
        clipped_low=_share(clipped_BT & (ratio_BT < clip.low), mask_BT),
        clipped_high=_share(clipped_BT & (ratio_BT > clip.high), mask_BT),
        dual_clipped=_share(dual_BT, mask_BT),
        rejected=_share(rejected_BT, mask_BT),
    )


def _aggregate(
    loss_BT: Tensor, mask_BT: Tensor, *, normaliser: Tensor | float | None, by_sequence: bool = False
) -> Tensor:
    """Sum over tokens over their number (or `normaliser`, the tokens or sequences of the whole batch); `by_sequence`:
    the mean of each sequence, then over sequences. A micro-batch without a token has loss 0 and no gradient."""
    loss_BT = torch.where(mask_BT, loss_BT, 0.0)
    counts_B = mask_BT.sum(-1)
    total = (loss_BT.sum(-1) / counts_B.clamp(min=1)).sum() if by_sequence else loss_BT.sum()
    if normaliser is None:
        normaliser = ((counts_B > 0).sum() if by_sequence else counts_B.sum()).clamp(min=1)
    return total / normaliser


def _share(flags_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Share of the mask; NaN if it is empty."""
    return (flags_BT & mask_BT).sum() / mask_BT.sum()
