"""ALP in slime: a function for `--custom-megatron-before-train-step-hook-path`.

    # my_hooks.py
    from tailwatch_alp.adapters.slime import train_step_hook
    before_train_step = train_step_hook(sigma=0.1, seed=17, data_rank=parallel_state.get_data_parallel_rank())

slime calls it with (args, rollout_id, step_id, model, optimizer, scheduler) before each optimiser step, `model` being
Megatron's list of chunks. At the first call noise is attached to their forwards; those that build a graph get it, the
log-prob passes under `torch.no_grad` stay clean. Use `--use-rollout-logprobs`, so that the ratio is over the sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tailwatch_alp.adapters.calls import perturb_calls
from tailwatch_alp.perturbation import Perturbation

_STEPS_PER_ROLLOUT = 1 << 20


def train_step_hook(*, seed: int, data_rank: int, pipeline_rank: int = 0, **options: Any) -> Callable[..., None]:
    """A hook for slime.

    Args:
        seed: of the run, below 2**32.
        data_rank: Megatron's data-parallel rank, since tensor-parallel ranks hold copies of one hidden state. With
            `--sequence-parallel` or context parallelism the global rank: there each rank holds tokens of its own.
        pipeline_rank: of this process: its layers are numbered from 0 on each stage, and must not share noise.
        **options: the other arguments of `Perturbation`.
    """
    attached: list[Perturbation] = []
    now = 0

    def before_train_step(
        args: Any,  # noqa: ARG001 — slime's signature
        rollout_id: int,
        step_id: int,
        model: Sequence[nn.Module],
        optimizer: Any,  # noqa: ARG001
        scheduler: Any,  # noqa: ARG001
    ) -> None:
        nonlocal now
        now = rollout_id * _STEPS_PER_ROLLOUT + step_id
        if attached:
            return
        for number, chunk in enumerate(model):
            stage_seed = seed + (pipeline_rank << 32) + (number << 48)
            perturbation = Perturbation(chunk, seed=stage_seed, data_rank=data_rank, **options)
            perturb_calls(chunk, "forward", perturbation, step=lambda: now)
            attached.append(perturbation)

    return before_train_step
