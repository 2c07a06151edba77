"""How strong the noise is: one sigma per layer, in log space, float32, between bounds, and never part of the model.

Three ways to have it: fixed; learned by an optimiser group of its own without weight decay (decay would pull sigma
towards 1); set from outside, step by step. A learned sigma is projected onto its bounds when a context is entered.
Sigma is not registered with the model, so no checkpoint and no weight sync ever sees it.

Shapes: L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tailwatch_alp.errors import ScaleError

DEFAULT_BOUNDS = (1e-4, 1.0)


class Scale:
    """One sigma per layer.

    Args:
        sigma: one for all layers, or one per layer.
        count: number of layers L.
        bounds: smallest and largest sigma.
        learnable: whether gradients flow to log sigma.
        device: where log sigma lives.

    Raises:
        ScaleError: a sigma that is not positive and finite, or outside the bounds; bounds that are none.
    """

    def __init__(
        self,
        sigma: float | Sequence[float],
        *,
        count: int,
        bounds: tuple[float, float] = DEFAULT_BOUNDS,
        learnable: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        low, high = bounds
        if not 0 < low <= high < math.inf:
            raise ScaleError(f"bounds={bounds!r}: expected 0 < low <= high < infinity")
        self.bounds = (float(low), float(high))
        self.count = count
        values = self._checked(sigma)
        log_sigma_L = torch.tensor([math.log(value) for value in values], dtype=torch.float32, device=device)
        self.log_sigma_L: Tensor = nn.Parameter(log_sigma_L) if learnable else log_sigma_L
        self.learnable = learnable
        self._given = values

    @property
    def values(self) -> tuple[float, ...]:
        """Sigma of every layer, now. Waits for the device if sigma is learned."""
        if self.learnable:
            return tuple(self.log_sigma_L.detach().double().exp().tolist())
        return self._given

    def set(self, sigma: float | Sequence[float]) -> None:
        """Set sigma from outside; a learned one goes on from there.

        Raises:
            ScaleError: as in the constructor; nothing is changed then.
        """
        values = self._checked(sigma)
        with torch.no_grad():
            self.log_sigma_L.copy_(torch.tensor([math.log(value) for value in values], dtype=torch.float32))
        self._given = values

    def gains(self, switched_on: Sequence[bool], *, gain: float) -> Tensor:
        """What the noise of each layer is multiplied by [L]: with a fixed sigma all of it, with a learned one all but
        sigma. 0 where a layer is off."""
        sigma = (1.0,) * self.count if self.learnable else self._given
        values = [gain * value if on else 0.0 for value, on in zip(sigma, switched_on, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

    def coefficient(self, layer: int, gain_L: Tensor) -> Tensor:
        """Sigma of a layer with its gain, a scalar; carries the gradient of log sigma if that is learned."""
        if not self.learnable:
            return gain_L[layer]
        return gain_L[layer] * self.log_sigma_L[layer].to(gain_L.device).exp()

    def project(self) -> None:
        """Bring a learned sigma back between its bounds. Queued on the device; waits for nothing."""
        if self.learnable:
            # Through .data: graphs that wait for their backward hold this tensor, and within bounds nothing changes.
            self.log_sigma_L.data.clamp_(math.log(self.bounds[0]), math.log(self.bounds[1]))

    def parameter_group(self, *, lr: float) -> dict[str, Any]:
        """A group for the trainer's own optimiser: this learning rate, no weight decay.

        Raises:
            ScaleError: sigma is not learned.
        """
        return {"params": [self._parameter()], "lr": lr, "weight_decay": 0.0}

    def optimizer(self, *, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> torch.optim.Optimizer:
        """An optimiser of its own: Adam without weight decay.

        Raises:
            ScaleError: sigma is not learned.
        """
        return torch.optim.Adam([self.parameter_group(lr=lr)], betas=betas)

    def clip_gradient(self, max_norm: float) -> Tensor:
        """Clip the gradient of log sigma apart from the model's; returns its norm before."""
        return nn.utils.clip_grad_norm_([self._parameter()], max_norm)

    def all_reduce_gradient(self, group: Any = None) -> None:
        """Average the gradient over data-parallel ranks: no wrapper does, sigma being outside the model.

        Raises:
            ScaleError: sigma is not learned.
        """
        parameter = self._parameter()
        if not torch.distributed.is_initialized():
            return
        if parameter.grad is None:  # a rank without a perturbed token takes part all the same
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad, group=group)
        parameter.grad /= torch.distributed.get_world_size(group)

    def state_dict(self) -> dict[str, Any]:
        """Sigma exactly as it is, given or learned, and the bounds."""
        log_sigma_L = self.log_sigma_L.detach().cpu().clone()
        return {"log_sigma": log_sigma_L, "sigma": list(self.values), "bounds": list(self.bounds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ScaleError: it belongs to a model with another number of layers.
        """
        log_sigma_L = state["log_sigma"]
        if log_sigma_L.shape != (self.count,):
            raise ScaleError(f"the state has {log_sigma_L.numel()} layers, this model {self.count}")
        self.bounds = (float(state["bounds"][0]), float(state["bounds"][1]))
        with torch.no_grad():
            self.log_sigma_L.copy_(log_sigma_L)
        self._given = tuple(state["sigma"])

    def _parameter(self) -> nn.Parameter:
        if not isinstance(self.log_sigma_L, nn.Parameter):
            raise ScaleError("sigma is fixed: make the Perturbation with learnable=True to optimise it")
        return self.log_sigma_L

    def _checked(self, sigma: float | Sequence[float]) -> tuple[float, ...]:
        try:
            values = [float(value) for value in sigma] if isinstance(sigma, Sequence) else [float(sigma)] * self.count
        except (TypeError, ValueError):
            raise ScaleError(f"sigma={sigma!r}: expected a number, or one per layer") from None
        if len(values) != self.count:
            raise ScaleError(f"{len(values)} sigmas for {self.count} layers: give one, or one per layer")
        low, high = self.bounds
        for value in values:
            if not low <= value <= high:  # false for NaN as well
                raise ScaleError(f"sigma={value!r}: expected a number from {low:g} to {high:g} (the bounds)")
        return tuple(values)
