"""Noise in every gradient-building call of a method: the smallest hook for a framework that has none.

A policy update and a log-prob recompute often are the same method, once with gradients and once without. That is the
line drawn here: calls under `torch.no_grad` or `inference_mode` stay clean.

    undo = perturb_calls(actor, "_forward_micro_batch", perturbation, step=lambda: trainer_step)      # verl
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class Activatable(Protocol):
    """A Perturbation, or an Actuator where noise is directed."""

    def active(self, *, step: int, micro_batch: int = 0) -> AbstractContextManager[Any]:
        """The context in which there is noise."""


class MicroBatches:
    """Numbers the gradient-building forwards of each step: 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._next = 0

    def take(self, step: int) -> int:
        """The number of the forward that begins now."""
        if step != self._step:
            self._step, self._next = step, 0
        number = self._next
        self._next += 1
        return number


def perturb_calls(owner: object, name: str, noise: Activatable, *, step: Callable[[], int]) -> Callable[[], None]:
    """Wrap `owner.name`, on this instance only: calls that build a graph run with noise.

    Args:
        owner: the object that has the method.
        name: of the method.
        noise: what is switched on.
        step: tells the training step; all ranks must say the same.

    Returns:
        A function that takes the wrapper off again.

    Raises:
        AttributeError: there is no such method.
    """
    original: Callable[..., Any] = getattr(owner, name)
    numbers = MicroBatches()

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        now = step()
        with noise.active(step=now, micro_batch=numbers.take(now)):
            return original(*args, **kwargs)

    had_own = name in vars(owner)
    setattr(owner, name, wrapper)

    def undo() -> None:
        if had_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)

    return undo
