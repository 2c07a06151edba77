"""How sharp the policy is at each layer: how far a small change of the hidden state moves the log-probs of the tokens.

    S_l = mean over tokens of E_z[(log pi(sigma z) - log pi)^2] / sigma^2  ->  mean of ||d log pi / d h_l||^2

`noise_sharpness` measures it with noise and no gradient, in antithetic pairs: half the difference of a pair is the
slope, from which the even terms have dropped out; half the sum is the curvature. `gradient_sharpness` measures the same
number with one backward for all layers: with a random sign per token, the squared gradient of the signed sum is in
expectation the sum of the squared gradients, and exactly so where each sequence has one token. With a relative sigma
both are in units of each token's RMS. `score_norm` and `logit_fisher_trace` are their closed form at the logits.

Shapes: B sequences, T tokens, D hidden size, V vocabulary. Nothing here changes the perturbation that is probed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tailwatch_alp.budget import Budget, Spending
from tailwatch_alp.errors import ProbeError
from tailwatch_alp.hooks import hidden_place
from tailwatch_alp.layers import select_layers
from tailwatch_alp.perturbation import Perturbation

_PROBE_MICRO_BATCH = 1 << 32  # no training micro-batch has this number, so a probe shares no noise with one


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSharpness:
    """S of one layer, in nats^2 per unit of sigma^2."""

    layer: int
    """Layer number."""
    value: float
    """Mean over the tokens; NaN if the budget allowed no sample."""
    standard_error: float
    """Of the value as an estimate for these tokens, over noise or signs; NaN below two samples."""
    curvature: float
    """Mean change of the log-prob that both signs share, over sigma^2 (for tokens the policy itself sampled about
    -tr F / 2); NaN where it was not measured."""
    samples: int
    """Antithetic pairs, or sign draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessReport:
    """A probe's result and what it cost."""

    layers: tuple[LayerSharpness, ...]
    """One per probed layer, ascending."""
    tokens: int
    """Tokens pushed through the model."""
    seconds: float
    """Wall time."""
    exhausted: bool
    """Whether the budget ended it early."""


def noise_sharpness(
    perturbation: Perturbation,
    logprobs: Callable[[], Tensor],
    *,
    mask_BT: Tensor,
    step: int,
    sigma: float = 0.02,
    layers: str | int | Iterable[int] = "all",
    pairs: int = 4,
    budget: Budget | None = None,
) -> SharpnessReport:
    """S_l by perturbed forwards without gradient.

    Args:
        perturbation: attached to the model; its unit of sigma is used, its sigma, layers and state are not touched.
        logprobs: runs the model and returns the log-probs [B, T] of the given tokens; deterministic but for the noise.
        mask_BT: True on the tokens that count.
        step: keys the noise.
        sigma: size of the noise; small enough that the log-probs answer linearly.
        layers: which ones, one at a time.
        pairs: antithetic pairs per layer.
        budget: limits; the pairs go round the layers, so that all have the same number but for the last round.

    Raises:
        ProbeError: no tokens, or no pairs asked for.
        LayerRangeError: a layer the model does not have.
    """
    count = _check(mask_BT, samples=pairs)
    chosen = select_layers(layers, count=perturbation.layer_count)
    spending = Spending(budget)
    slopes: dict[int, list[float]] = {layer: [] for layer in chosen}
    curvatures: dict[int, list[float]] = {layer: [] for layer in chosen}
    with torch.no_grad():
        clean_BT = logprobs().double() if spending.allows(mask_BT.numel()) else None
        for pair in range(pairs):
            for layer in chosen:
                if clean_BT is None or not spending.allows(2 * mask_BT.numel()):
                    break
                sides = []
                for antithetic in (False, True):
                    with (
                        perturbation.probing(sigma=sigma, layers=(layer,)),
                        perturbation.active(step=step, micro_batch=_PROBE_MICRO_BATCH + pair, antithetic=antithetic),
                    ):
                        sides.append(logprobs().double())
                slope_BT = torch.where(mask_BT, (sides[0] - sides[1]) / 2, 0.0)
                bend_BT = torch.where(mask_BT, (sides[0] + sides[1]) / 2 - clean_BT, 0.0)
                slopes[layer].append(slope_BT.square().sum().item() / count / sigma**2)
                curvatures[layer].append(bend_BT.sum().item() / count / sigma**2)
    return _report(slopes, curvatures=curvatures, spending=spending)


def gradient_sharpness(
    perturbation: Perturbation,
    logprobs: Callable[[], Tensor],
    *,
    mask_BT: Tensor,
    layers: str | int | Iterable[int] = "all",
    draws: int = 1,
    seed: int = 0,
    budget: Budget | None = None,
) -> SharpnessReport:
    """The same S_l by backward: one per draw of signs, for all layers at once. Exact where each sequence has one token
    in the mask.

    Args:
        perturbation: says where the layers are and whether sigma is relative; stays off.
        logprobs: runs the model with gradients, without reentrant checkpointing.
        mask_BT: True on the tokens that count.
        layers: which ones.
        draws: sign draws.
        seed: of the signs.
        budget: limits.

    Raises:
        ProbeError: no tokens, no draws asked for, or a layer the log-probs do not depend on.
        LayerRangeError: a layer the model does not have.
    """
    count = _check(mask_BT, samples=draws)
    chosen = select_layers(layers, count=perturbation.layer_count)
    spending = Spending(budget)
    values: dict[int, list[float]] = {layer: [] for layer in chosen}
    generator = torch.Generator().manual_seed(seed)
    with _taps({layer: perturbation.modules[layer] for layer in chosen}) as inputs, torch.enable_grad():
        logprobs_BT = torch.where(mask_BT, logprobs(), 0.0) if spending.allows(mask_BT.numel()) else None
        missing = [layer for layer in chosen if layer not in inputs]
        if logprobs_BT is not None and (missing or not logprobs_BT.requires_grad):
            raise ProbeError(f"the log-probs do not depend on layers {missing or list(chosen)}: is there a graph?")
        for _ in range(draws):
            if logprobs_BT is None or not spending.allows(mask_BT.numel()):
                break
            signs_BT = torch.randint(0, 2, mask_BT.shape, generator=generator).to(logprobs_BT) * 2 - 1
            gradients = torch.autograd.grad(
                (logprobs_BT * signs_BT).sum(), [inputs[layer] for layer in chosen], retain_graph=True
            )
            for layer, gradient in zip(chosen, gradients, strict=True):
                square = gradient.double().square().sum(-1)
                if perturbation.relative:
                    square = square * inputs[layer].detach().double().square().mean(-1)
                values[layer].append(square.sum().item() / count)
    return _report(values, curvatures=None, spending=spending)


def score_norm(logits: Tensor, tokens: Tensor) -> Tensor:
    """||d log pi(y) / d logits||^2 = (1 - p_y)^2 + sum over k != y of p_k^2.

    Args:
        logits: [..., V].
        tokens: [...] the chosen y.

    Returns:
        [...] float32 or wider, 0 (certain) to 2.
    """
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    chosen = p.gather(-1, tokens[..., None])[..., 0]
    return p.square().sum(-1) - 2 * chosen + 1


def logit_fisher_trace(logits: Tensor) -> Tensor:
    """Trace of the Fisher matrix at the logits, 1 - sum of p^2: the expectation of `score_norm` over y ~ p.

    Args:
        logits: [..., V].

    Returns:
        [...] float32 or wider, 0 (certain) to 1 - 1/V.
    """
    return 1 - logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).square().sum(-1)


@contextmanager
def _taps(modules: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What the layers receive, as tensors a gradient can be taken to."""
    inputs: dict[int, Tensor] = {}

    def tap(layer: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            place = hidden_place(args, kwargs)
            if place is None or torch._C._current_graph_task_id() != -1:  # a recompute: the forward's is the one
                return None
            hidden = args[place] if isinstance(place, int) else kwargs[place]
            if not hidden.requires_grad:  # below the first trainable weight: frozen embeddings under LoRA
                hidden = hidden.detach().requires_grad_()
            inputs[layer] = hidden
            if isinstance(place, int):
                return (*args[:place], hidden, *args[place + 1 :]), kwargs
            return args, {**kwargs, place: hidden}

        return hook

    handles = [module.register_forward_pre_hook(tap(layer), with_kwargs=True) for layer, module in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _check(mask_BT: Tensor, *, samples: int) -> int:
    count = int(mask_BT.sum())
    if count == 0:
        raise ProbeError("the mask is empty: there is no token to probe")
    if samples < 1:
        raise ProbeError(f"{samples} samples asked for: at least one is needed")
    return count


def _report(
    values: dict[int, list[float]], *, curvatures: dict[int, list[float]] | None, spending: Spending
) -> SharpnessReport:
    layers = []
    for layer, samples in values.items():
        value, error = mean_and_error(samples)
        curvature = math.nan if curvatures is None else mean_and_error(curvatures[layer])[0]
        layers.append(
            LayerSharpness(layer=layer, value=value, standard_error=error, curvature=curvature, samples=len(samples))
        )
    return SharpnessReport(
        layers=tuple(layers), tokens=spending.tokens, seconds=spending.seconds, exhausted=spending.exhausted
    )


def mean_and_error(samples: list[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN where there are too few samples."""
    count = len(samples)
    if count == 0:
        return math.nan, math.nan
    mean = math.fsum(samples) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((sample - mean) ** 2 for sample in samples) / (count - 1)
    return mean, math.sqrt(variance / count)
