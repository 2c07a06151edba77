"""Lanczos and Hutchinson against matrices that are known, and the Hessian of a model written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tailwatch_alp.budget import Budget
from tailwatch_alp.curvature import extreme_eigenvalues, hessian_product, trace
from tailwatch_alp.errors import ProbeError
from tests.alp.models import Plain, chosen_logprobs, tokens


def symmetric(size: int, *, seed: int = 0) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def test_the_ends_of_a_known_spectrum() -> None:
    matrix = symmetric(60)
    truth = torch.linalg.eigvalsh(matrix)
    found = extreme_eigenvalues(lambda v: matrix @ v, 60, steps=40)
    assert found.largest == pytest.approx(truth[-1].item(), rel=1e-6)
    assert found.smallest == pytest.approx(truth[0].item(), rel=1e-6)
    assert found.residual < 1e-3
    assert found.products == 40


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_the_unit_of_the_loss_does_not_matter(unit: float) -> None:
    matrix = symmetric(60)
    expected = extreme_eigenvalues(lambda v: matrix @ v, 60)
    found = extreme_eigenvalues(lambda v: unit * (matrix @ v), 60)
    assert found.largest / unit == pytest.approx(expected.largest)
    assert found.products == expected.products


def test_nothing_has_no_curvature() -> None:
    found = extreme_eigenvalues(lambda v: 0 * v, 5)
    assert (found.largest, found.smallest, found.residual, found.products) == (0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_residual_bounds_the_error(steps: int) -> None:
    matrix = symmetric(60)
    truth = torch.linalg.eigvalsh(matrix)
    found = extreme_eigenvalues(lambda v: matrix @ v, 60, steps=steps)
    assert (truth - found.largest).abs().min().item() <= found.residual * (1 + 1e-9)
    assert found.largest <= truth[-1].item() + 1e-9


def test_a_matrix_of_low_rank_ends_early() -> None:
    vector = torch.arange(1.0, 11.0, dtype=torch.float64)
    found = extreme_eigenvalues(lambda v: vector * (vector @ v), 10, steps=10)
    assert found.products == 2
    assert found.largest == pytest.approx((vector @ vector).item())


def test_the_trace_of_a_known_matrix() -> None:
    matrix = symmetric(60)
    found = trace(lambda v: matrix @ v, 60, samples=400)
    assert found.samples == 400
    assert abs(found.value - matrix.trace().item()) < 4 * found.standard_error
    spread = math.sqrt(2 * (matrix - torch.diag(matrix.diag())).square().sum().item() / 400)
    assert found.standard_error == pytest.approx(spread, rel=0.15)


def test_the_trace_of_a_diagonal_matrix_is_exact() -> None:
    diagonal = torch.arange(5.0, dtype=torch.float64)
    found = trace(lambda v: diagonal * v, 5, samples=3)
    assert (found.value, found.standard_error) == (10.0, 0.0)


def test_products_with_the_hessian_of_a_model() -> None:
    model = Plain(width=4, layers=1, vocabulary=7).double()
    ids = tokens(2, 5) % 7
    weights = [model.get_parameter("blocks.0.mixer.weight"), model.get_parameter("head.weight")]

    def loss() -> Tensor:
        return -chosen_logprobs(model(ids), ids).mean()

    product, size = hessian_product(loss(), weights)
    assert size == 16 + 28
    full = torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])
    torch.testing.assert_close(full, full.T)
    truth = torch.linalg.eigvalsh(full)
    assert extreme_eigenvalues(product, size, steps=size).largest == pytest.approx(truth[-1].item(), rel=1e-6)
    estimate = trace(product, size, samples=200)
    assert abs(estimate.value - full.trace().item()) < 4 * estimate.standard_error
    step, column = 1e-5, 20  # an entry of the head, by differences of gradients
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            weights[1].view(-1)[column - 16] += sign * step
        sides.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(), weights)]))
        with torch.no_grad():
            weights[1].view(-1)[column - 16] -= sign * step
    torch.testing.assert_close(full[column], (sides[0] - sides[1]) / (2 * step), rtol=1e-4, atol=1e-8)


def test_a_tensor_the_loss_does_not_know_counts_as_zero() -> None:
    x, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    product, size = hessian_product((x**4).sum(), [x, unused])
    assert size == 5
    assert product(torch.ones(5)).tolist() == [12.0, 12.0, 0.0, 0.0, 0.0]


def test_no_second_derivative() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ProbeError, match="second derivative"):
        hessian_product(x.sum(), [x])


def test_budgets() -> None:
    matrix = symmetric(30)
    budget = Budget(tokens=50)
    assert extreme_eigenvalues(lambda v: matrix @ v, 30, budget=budget, tokens_per_product=20).products == 2
    assert trace(lambda v: matrix @ v, 30, budget=budget, tokens_per_product=20).samples == 2
    nothing = extreme_eigenvalues(lambda v: matrix @ v, 30, budget=budget, tokens_per_product=60)
    assert nothing.products == 0
    assert math.isnan(nothing.largest)
    assert math.isnan(trace(lambda v: matrix @ v, 30, budget=budget, tokens_per_product=60).value)
