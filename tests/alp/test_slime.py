"""slime's hook, called as slime calls it: before each optimiser step, with a list of model chunks."""

from __future__ import annotations

import torch

from tailwatch_alp.adapters.slime import train_step_hook
from tests.alp.models import Plain, tokens

IDS = tokens(2, 9)


def test_training_forwards_are_perturbed_and_log_prob_passes_are_not() -> None:
    chunks = [Plain(layers=2), Plain(layers=2)]
    chunks[1].load_state_dict(chunks[0].state_dict())
    clean = chunks[0](IDS)
    hook = train_step_hook(sigma=0.2, seed=3, data_rank=0)
    noisy = []
    for rollout_id, step_id in ((0, 0), (0, 1), (1, 0)):
        hook(None, rollout_id, step_id, chunks, None, None)
        with torch.no_grad():
            assert torch.equal(chunks[0](IDS), clean)
        noisy += [chunk(IDS).detach() for chunk in chunks for _ in range(2)]
    different = {tuple(value.flatten()[:4].tolist()) for value in [clean, *noisy]}
    assert len(different) == 1 + 3 * 2 * 2  # each step, chunk and micro-batch has noise of its own


def test_stages_share_no_noise() -> None:
    results = []
    for pipeline_rank in (0, 0, 1):
        torch.manual_seed(0)
        model = Plain()
        train_step_hook(sigma=0.2, seed=3, data_rank=0, pipeline_rank=pipeline_rank)(None, 0, 0, [model], None, None)
        results.append(model(IDS).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
