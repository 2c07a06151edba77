"""Curvature of a loss in its weights or in a hidden state, from Hessian-vector products: the ends of the spectrum by
Lanczos, the trace by Hutchinson. Offline measures: each product costs about two backwards.

Lanczos: with full reorthogonalisation, since without it the vectors lose each other and the top value appears twice.
Hutchinson 1990, random signs: E[v' H v] = tr H. Attention must have a second derivative: the fused kernels have none
(`attn_implementation="eager"`).

Shapes: P numbers of the point at which the curvature is taken, K Lanczos steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tailwatch_alp.budget import Budget, Spending
from tailwatch_alp.errors import ProbeError
from tailwatch_alp.sharpness import mean_and_error

Product = Callable[[Tensor], Tensor]
"""Maps a vector [P] to the matrix times it [P]."""
_BREAKDOWN = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The ends of a spectrum."""

    largest: float
    """Largest eigenvalue; NaN if the budget allowed no product."""
    smallest: float
    """Smallest."""
    residual: float
    """||H v - largest v||: the largest eigenvalue is at most this far from a true one."""
    products: int
    """Products taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace."""

    value: float
    """Estimate; NaN if the budget allowed no sample."""
    standard_error: float
    """Over sign vectors; NaN below two."""
    samples: int
    """Sign vectors."""


def hessian_product(loss: Tensor, at: Sequence[Tensor]) -> tuple[Product, int]:
    """Products with the Hessian of a loss, and P.

    Args:
        loss: scalar, with a graph that can be differentiated twice.
        at: the tensors it is a function of.

    Raises:
        ProbeError: the loss depends on none of them.
    """
    points = list(at)
    gradients = torch.autograd.grad(loss, points, create_graph=True, allow_unused=True)
    answers: Sequence[Tensor | None] = gradients  # torch's types forget what allow_unused means
    if not any(gradient is not None and gradient.requires_grad for gradient in answers):
        raise ProbeError("the loss has no second derivative in these tensors")
    flat_P = torch.cat([_flat(gradient, like=point) for point, gradient in zip(points, gradients, strict=True)])

    def product(vector_P: Tensor) -> Tensor:
        answers = torch.autograd.grad(flat_P, points, vector_P.to(flat_P), retain_graph=True, allow_unused=True)
        return torch.cat([_flat(answer, like=point) for point, answer in zip(points, answers, strict=True)]).detach()

    return product, flat_P.numel()


def extreme_eigenvalues(
    product: Product,
    size: int,
    *,
    steps: int = 20,
    seed: int = 0,
    budget: Budget | None = None,
    tokens_per_product: int = 0,
) -> Spectrum:
    """Largest and smallest eigenvalue of a symmetric matrix given by its products.

    Args:
        product: the matrix.
        size: P.
        steps: K, products at most.
        seed: of the first vector.
        budget: limits.
        tokens_per_product: what one product counts against the budget's tokens.
    """
    spending = Spending(budget)
    generator = torch.Generator().manual_seed(seed)
    vector_P = torch.randn(size, generator=generator, dtype=torch.float64)
    basis = [vector_P / vector_P.norm()]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(steps, size)):
        if not spending.allows(tokens_per_product):
            break
        next_P = product(basis[-1]).double().cpu()
        diagonal.append(float(next_P @ basis[-1]))
        size_before = float(next_P.norm())
        for _ in range(2):  # twice is enough
            for known_P in basis:
                next_P = next_P - (next_P @ known_P) * known_P
        off_diagonal.append(float(next_P.norm()))
        if off_diagonal[-1] <= _BREAKDOWN * size_before:
            break
        basis.append(next_P / off_diagonal[-1])
    if not diagonal:
        return Spectrum(largest=math.nan, smallest=math.nan, residual=math.nan, products=0)
    matrix_KK = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for k, value in enumerate(off_diagonal[: len(diagonal) - 1]):
        matrix_KK[k, k + 1] = matrix_KK[k + 1, k] = value
    values_K, vectors_KK = torch.linalg.eigh(matrix_KK)
    residual = off_diagonal[-1] * abs(float(vectors_KK[-1, -1]))
    return Spectrum(largest=float(values_K[-1]), smallest=float(values_K[0]), residual=residual, products=len(diagonal))


def trace(
    product: Product,
    size: int,
    *,
    samples: int = 16,
    seed: int = 0,
    budget: Budget | None = None,
    tokens_per_product: int = 0,
) -> Trace:
    """Trace of a matrix given by its products, by random signs.

    Args:
        product: the matrix.
        size: P.
        samples: sign vectors at most.
        seed: of the signs.
        budget: limits.
        tokens_per_product: what one product counts against the budget's tokens.
    """
    spending = Spending(budget)
    generator = torch.Generator().manual_seed(seed)
    values: list[float] = []
    for _ in range(samples):
        if not spending.allows(tokens_per_product):
            break
        signs_P = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        values.append(float(product(signs_P).double().cpu() @ signs_P))
    value, error = mean_and_error(values)
    return Trace(value=value, standard_error=error, samples=len(values))


def _flat(tensor: Tensor | None, *, like: Tensor) -> Tensor:
    return torch.zeros_like(like).flatten() if tensor is None else tensor.flatten()
