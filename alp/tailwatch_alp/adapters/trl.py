"""ALP in TRL's GRPOTrainer: noise in the loss's forward, the sampling log-probs as denominator, nothing else changed.

    perturbation = Perturbation(trainer.model, sigma=0.1, seed=trainer.args.seed)
    attach(trainer, perturbation)

Wraps one method of the trainer instance, `_compute_loss`. Generation, the recomputed old and reference log-probs and
evaluation are made elsewhere and stay clean. TRL divides by `old_per_token_logps`; here those of the sampler take its
place and its separate importance weight is dropped: one ratio of the perturbed policy over the sampler, also while an
actuator has the noise off (the control arm). With `importance_sampling_level="sequence"` it is the geometric objective.

Shapes: B sequences, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailwatch_alp.actuator import Actuator
from tailwatch_alp.adapters.calls import MicroBatches
from tailwatch_alp.errors import LossInputError
from tailwatch_alp.perturbation import Perturbation


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The log-probs of one micro-batch, as the loss saw them and without noise."""

    step: int
    """Training step."""
    micro_batch: int
    """Number of the forward within the step."""
    perturbed_BT: Tensor
    """[B, T] of the perturbed policy, detached."""
    clean_BT: Tensor
    """[B, T] of the same weights without noise."""
    infer_BT: Tensor
    """[B, T] of the sampler."""
    mask_BT: Tensor
    """[B, T] bool, the tokens of the loss."""


def attach(
    trainer: Any,
    perturbation: Perturbation,
    *,
    actuator: Actuator | None = None,
    observe: Callable[[Observation], None] | None = None,
) -> Callable[[], None]:
    """Put noise into the trainer's loss.

    Args:
        trainer: a GRPOTrainer, made already.
        perturbation: of `trainer.model`.
        actuator: switches it as directed, once per step; None: it is always on.
        observe: gets the log-probs of every micro-batch; costs a forward without gradients for the clean ones.

    Returns:
        A function that takes everything off again.

    Raises:
        LossInputError: the trainer computes its loss in a fused kernel, past the method that is wrapped.
    """
    fused = [name for name in ("use_liger_kernel", "use_liger_loss") if getattr(trainer, name, False)]
    if fused and hasattr(trainer, "compute_liger_loss"):
        raise LossInputError(
            f"{fused[0]}=True: that loss never asks for log-probs, so noise has no place: set it to False"
        )
    original_loss = trainer._compute_loss
    original_logprobs = trainer._get_per_token_logps_and_entropies
    epsilons = trainer.epsilon_low, trainer.epsilon_high
    numbers = MicroBatches()
    directed_at = -1

    def direct(step: int) -> None:
        nonlocal directed_at
        if actuator is None or step == directed_at:
            return
        directed_at = step
        clip = actuator.step(step).clip
        trainer.epsilon_low, trainer.epsilon_high = epsilons if clip is None else (1 - clip[0], clip[1] - 1)

    def compute_loss(model: Any, inputs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():  # an evaluation loss
            return original_loss(model, inputs)
        step = int(trainer.state.global_step)
        direct(step)
        number = numbers.take(step)
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

        def logprobs(*args: Any, **kwargs: Any) -> Any:
            answer = original_logprobs(*args, **kwargs)
            calls.append((args, kwargs, answer[0].detach()))
            return answer

        noise = perturbation if actuator is None else actuator
        trainer._get_per_token_logps_and_entropies = logprobs
        try:
            with noise.active(step=step, micro_batch=number):
                loss = original_loss(model, over_sampler(inputs))
            if observe is not None:
                args, kwargs, perturbed_BT = calls[0]
                with torch.no_grad():
                    clean_BT = original_logprobs(*args, **kwargs)[0]
                observe(
                    Observation(
                        step=step,
                        micro_batch=number,
                        perturbed_BT=perturbed_BT,
                        clean_BT=clean_BT,
                        infer_BT=inputs["sampling_per_token_logps"],
                        mask_BT=_mask(inputs),
                    )
                )
        finally:
            trainer._get_per_token_logps_and_entropies = original_logprobs
        return loss

    trainer._compute_loss = compute_loss

    def undo() -> None:
        trainer._compute_loss = original_loss
        trainer.epsilon_low, trainer.epsilon_high = epsilons

    return undo


def over_sampler(inputs: dict[str, Any]) -> dict[str, Any]:
    """TRL's inputs with the sampler's log-probs as the denominator and no other importance weight.

    Raises:
        LossInputError: the sampler's log-probs are missing.
    """
    infer_BT = inputs.get("sampling_per_token_logps")
    if infer_BT is None:
        raise LossInputError(
            "TRL kept no sampling_per_token_logps: use vLLM with vllm_importance_sampling_correction=True, or a "
            "rollout_func that returns log-probs"
        )
    # NaN marks tokens the sampler could not score; they are masked, but TRL multiplies by the mask.
    changed = {"old_per_token_logps": infer_BT.nan_to_num(0.0)}
    if "importance_sampling_ratio" in inputs:
        changed["importance_sampling_ratio"] = torch.ones_like(inputs["importance_sampling_ratio"])
    return {**inputs, **changed}


def _mask(inputs: dict[str, Any]) -> Tensor:
    mask_BT = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask_BT = mask_BT * inputs["tool_mask"]
    return mask_BT.bool()  # type: ignore[no-any-return]
