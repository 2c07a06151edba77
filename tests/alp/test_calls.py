"""Noise in the gradient-building calls of a method, on stand-ins that call as verl's and slime's workers do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tailwatch_alp import Perturbation
from tailwatch_alp.actuator import Actuator
from tailwatch_alp.adapters.calls import MicroBatches, perturb_calls
from tests.alp.models import Plain, chosen_logprobs, tokens

BATCH = tokens(4, 9)


class Actor:
    """One method for the recompute of old log-probs, without gradients, and for the update, with them."""

    def __init__(self) -> None:
        self.actor_module = Plain()
        self.updates: list[Tensor] = []

    def _forward_micro_batch(self, micro_batch: Tensor) -> Tensor:
        return chosen_logprobs(self.actor_module(micro_batch), micro_batch)

    def compute_log_prob(self) -> Tensor:
        self.actor_module.eval()
        with torch.no_grad():
            return torch.cat([self._forward_micro_batch(part) for part in BATCH.chunk(2)])

    def update_policy(self) -> None:
        self.actor_module.train()
        for part in BATCH.chunk(2):
            logprobs = self._forward_micro_batch(part)
            logprobs.mean().backward()  # type: ignore[no-untyped-call]
            self.updates.append(logprobs.detach())


def test_updates_are_perturbed_and_recomputed_log_probs_are_not() -> None:
    actor = Actor()
    clean = actor.compute_log_prob()
    perturbation = Perturbation(actor.actor_module, sigma=0.2)
    step = 7
    undo = perturb_calls(actor, "_forward_micro_batch", perturbation, step=lambda: step)
    assert torch.equal(actor.compute_log_prob(), clean)
    actor.update_policy()
    assert torch.equal(actor.compute_log_prob(), clean)
    noisy = torch.cat(actor.updates)
    assert not torch.equal(noisy, clean)
    for number, part in enumerate(BATCH.chunk(2)):  # each micro-batch has the noise of its number
        with perturbation.active(step=7, micro_batch=number):
            expected = chosen_logprobs(actor.actor_module(part), part)
        assert torch.equal(expected, actor.updates[number])
    undo()
    actor.updates.clear()
    actor.update_policy()
    assert torch.equal(torch.cat(actor.updates), clean)
    assert "_forward_micro_batch" not in vars(actor)


def test_a_directed_run() -> None:
    actor = Actor()
    clean = actor.compute_log_prob()
    on = {"version": 1, "state": "on", "strength": 0.2, "apply_from_step": 1, "ttl_steps": 1}
    actuator = Actuator(Perturbation(actor.actor_module, sigma=0.1), source=lambda: on, decay_steps=1)
    now = 0
    perturb_calls(actor, "_forward_micro_batch", actuator, step=lambda: now)
    noisy = []
    for now in range(3):
        actuator.step(now)
        actor.updates.clear()
        actor.update_policy()
        noisy.append(not torch.equal(torch.cat(actor.updates), clean))
    assert noisy == [False, True, False]


def test_micro_batches_are_numbered_within_the_step() -> None:
    numbers = MicroBatches()
    assert [numbers.take(step) for step in (4, 4, 4, 5, 5, 4)] == [0, 1, 2, 0, 1, 0]


def test_a_method_that_is_not_there() -> None:
    actor = Actor()
    with pytest.raises(AttributeError, match="no_such"):
        perturb_calls(actor, "no_such", Perturbation(actor.actor_module, sigma=0.2), step=lambda: 0)


def test_a_wrapper_set_by_somebody_else_comes_back() -> None:
    actor = Actor()
    own = lambda micro_batch: micro_batch  # noqa: E731
    actor._forward_micro_batch = own  # type: ignore[method-assign]
    undo = perturb_calls(actor, "_forward_micro_batch", Perturbation(actor.actor_module, sigma=0.2), step=lambda: 0)
    assert actor._forward_micro_batch is not own
    undo()
    assert actor._forward_micro_batch is own
