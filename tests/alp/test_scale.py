"""Sigma: fixed, learned or set from outside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tailwatch_alp import Perturbation
from tailwatch_alp.errors import ScaleError
from tailwatch_alp.scale import Scale
from tests.alp.models import Plain, tokens


def learned(sigma: float = 0.2, *, bounds: tuple[float, float] = (0.1, 0.4)) -> tuple[Plain, Perturbation]:
    model = Plain()
    return model, Perturbation(model, sigma=sigma, learnable=True, bounds=bounds)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.5, 0.1), (0.1, math.inf), (math.nan, 1.0)])
def test_bounds_that_are_none(bounds: tuple[float, float]) -> None:
    with pytest.raises(ScaleError, match="bounds="):
        Scale(0.1, count=2, bounds=bounds)


def test_setting_from_outside_is_all_or_nothing() -> None:
    scale = Scale(0.1, count=3)
    scale.set((0.1, 0.2, 0.3))
    assert scale.values == (0.1, 0.2, 0.3)
    for wrong in (math.nan, 0.0, 2.0, (0.1, 0.1)):
        with pytest.raises(ScaleError):
            scale.set(wrong)
    assert scale.values == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("sigma", [np.float32(0.125), torch.tensor(0.125), np.float64(0.125), 0.125, (0.125, 0.125)])
def test_numbers_of_any_kind(sigma: Any) -> None:
    assert Scale(sigma, count=2).values == (0.125, 0.125)


@pytest.mark.parametrize("sigma", ["0.1", None, {}, object()])
def test_what_is_no_number(sigma: Any) -> None:
    with pytest.raises(ScaleError, match=r"sigma=.*expected a number"):
        Scale(sigma, count=2)


@pytest.mark.parametrize(("relative", "layers"), [(False, [0, 1, 2]), (True, [2])])
def test_the_gradient_of_log_sigma_agrees_with_finite_differences(relative: bool, layers: list[int]) -> None:
    # The RMS is held constant in backward, so a relative sigma is compared where no RMS comes after it.
    model = Plain().double()
    perturbation = Perturbation(model, sigma=0.2, learnable=True, relative=relative)
    ids = tokens(2, 9)

    def loss() -> Tensor:
        with perturbation.active(step=0):
            return model(ids).log_softmax(-1)[..., 3].mean()  # type: ignore[no-any-return]

    torch.autograd.backward(loss())
    expected = []
    for layer in layers:
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                perturbation.scale.log_sigma_L[layer] += sign * 1e-3
                sides.append(loss().item())
                perturbation.scale.log_sigma_L[layer] -= sign * 1e-3
        expected.append((sides[0] - sides[1]) / 2e-3)
    actual = gradient(perturbation.scale.log_sigma_L)[layers]
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=2e-3, atol=1e-6)


def test_layers_that_are_off_get_no_gradient() -> None:
    model, perturbation = learned()
    perturbation.set_layers([1])
    with perturbation.active(step=0):
        model(tokens(2, 9)).square().mean().backward()
    zero = gradient(perturbation.scale.log_sigma_L) == 0
    assert zero.tolist() == [True, False, True]


def test_its_own_optimiser_moves_sigma_without_decay_and_stays_in_bounds() -> None:
    model, perturbation = learned()
    scale = perturbation.scale
    optimizer = scale.optimizer(lr=0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    for step in range(40):
        optimizer.zero_grad()
        with perturbation.active(step=step):
            # More noise is rewarded: sigma runs into its upper bound.
            (-model(tokens(2, 9)).square().mean()).backward()
        assert math.isfinite(scale.clip_gradient(1e-3).item())
        assert gradient(scale.log_sigma_L).norm().item() <= 1e-3 * (1 + 1e-5)
        optimizer.step()
    with perturbation.active(step=40):
        model(tokens(2, 9))
    assert all(0.1 <= sigma <= 0.4 * (1 + 1e-6) for sigma in scale.values)
    assert max(scale.values) > 0.35


def test_a_zero_gradient_does_not_move_sigma_as_decay_would() -> None:
    scale = Scale(0.2, count=2, learnable=True)
    group = scale.parameter_group(lr=0.1)
    optimizer = torch.optim.AdamW([group], weight_decay=0.5)
    scale.log_sigma_L.grad = torch.zeros(2)
    optimizer.step()
    assert scale.values == pytest.approx((0.2, 0.2), rel=1e-6)


def test_setting_a_learned_sigma_keeps_the_parameter() -> None:
    _, perturbation = learned()
    parameter = perturbation.scale.log_sigma_L
    perturbation.set_sigma(0.3)
    assert perturbation.scale.log_sigma_L is parameter
    assert perturbation.sigma == pytest.approx((0.3,) * 3)


def test_a_fixed_sigma_has_nothing_to_learn() -> None:
    scale = Scale(0.1, count=2)
    for call in (lambda: scale.parameter_group(lr=1.0), lambda: scale.clip_gradient(1.0), scale.all_reduce_gradient):
        with pytest.raises(ScaleError, match="learnable=True"):
            call()


def test_alone_there_is_nothing_to_reduce() -> None:
    scale = Scale(0.1, count=2, learnable=True)
    scale.all_reduce_gradient()
    assert scale.log_sigma_L.grad is None


@pytest.mark.parametrize("learnable", [True, False])
def test_the_state_comes_back_exactly(learnable: bool) -> None:
    scale = Scale((0.1, 0.2), count=2, learnable=learnable, bounds=(0.05, 0.5))
    other = Scale(0.3, count=2, learnable=learnable)
    other.load_state_dict(scale.state_dict())
    assert other.values == scale.values
    assert other.bounds == (0.05, 0.5)
    assert torch.equal(other.log_sigma_L, scale.log_sigma_L)
