"""Sharpness by noise, by gradients and in closed form; and what theory says they must be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tailwatch_alp import Perturbation
from tailwatch_alp.budget import Budget
from tailwatch_alp.errors import LayerRangeError, NestedActivationError, ProbeError
from tailwatch_alp.noise import perturb
from tailwatch_alp.sharpness import (
    gradient_sharpness,
    logit_fisher_trace,
    mean_and_error,
    noise_sharpness,
    score_norm,
)
from tests.alp.models import Plain, build, chosen_logprobs, hugging_face, tokens

IDS = tokens(4, 8)


def probe(model: nn.Module, ids: Tensor = IDS) -> Callable[[], Tensor]:
    return lambda: chosen_logprobs(model(ids), ids)


def exact(model: Plain, perturbation: Perturbation, mask_BT: Tensor) -> list[float]:
    """Mean squared gradient norm in each layer's input, one backward per token."""
    inputs: list[Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in model.blocks]
    logprobs_BT = probe(model)()
    for handle in handles:
        handle.remove()
    sums = [0.0] * len(inputs)
    for value in logprobs_BT[mask_BT]:
        for layer, gradient in enumerate(torch.autograd.grad(value, inputs, retain_graph=True)):
            square = gradient.square().sum(-1)
            if perturbation.relative:
                square = square * inputs[layer].detach().square().mean(-1)
            sums[layer] += square.sum().item()
    return [value / int(mask_BT.sum()) for value in sums]


@pytest.mark.parametrize("relative", [True, False])
def test_noise_and_gradients_agree_with_the_exact_norm(relative: bool) -> None:
    model = Plain().double()
    perturbation = Perturbation(model, sigma=0.1, relative=relative)
    mask_BT = torch.rand(4, 7) < 0.8
    truth = exact(model, perturbation, mask_BT)
    by_noise = noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=0, sigma=1e-3, pairs=40)
    by_gradient = gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT, draws=40)
    for report in (by_noise, by_gradient):
        assert [entry.layer for entry in report.layers] == [0, 1, 2]
        for entry, expected in zip(report.layers, truth, strict=True):
            assert entry.samples == 40
            assert 0 < entry.standard_error < 0.25 * expected
            assert abs(entry.value - expected) < 4 * entry.standard_error


def test_checkpointing_does_not_change_the_gradients() -> None:
    reports = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = hugging_face("qwen2").train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        perturbation = Perturbation(model, sigma=0.1)
        reports.append(
            gradient_sharpness(
                perturbation,
                lambda model=model: chosen_logprobs(model(IDS, use_cache=False).logits, IDS),  # type: ignore[misc]
                mask_BT=torch.ones(4, 7, dtype=torch.bool),
                draws=3,
            )
        )
    assert [entry.value for entry in reports[0].layers] == pytest.approx([entry.value for entry in reports[1].layers])


def test_one_token_per_sequence_needs_one_backward() -> None:
    model = Plain().double()
    perturbation = Perturbation(model, sigma=0.1)
    mask_BT = torch.zeros(4, 7, dtype=torch.bool)
    mask_BT[range(4), [0, 6, 3, 3]] = True
    report = gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT)
    assert [entry.value for entry in report.layers] == pytest.approx(exact(model, perturbation, mask_BT), rel=1e-9)
    assert all(math.isnan(entry.standard_error) for entry in report.layers)


def test_the_standard_error_says_how_far_estimates_scatter() -> None:
    model = Plain().double()
    perturbation = Perturbation(model, sigma=0.1, layers=[0])
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    reports = [
        noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=step, layers=0, sigma=1e-3, pairs=8)
        for step in range(40)
    ]
    values = torch.tensor([report.layers[0].value for report in reports])
    claimed = torch.tensor([report.layers[0].standard_error for report in reports]).mean().item()
    assert values.std().item() == pytest.approx(claimed, rel=0.4)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_hugging_face_model_can_be_probed(name: str) -> None:
    model = build(name)
    perturbation = Perturbation(model, sigma=0.1)
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    by_noise = noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=0, sigma=0.01, pairs=12)
    by_gradient = gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT, draws=12)
    for a, b in zip(by_noise.layers, by_gradient.layers, strict=True):
        assert abs(a.value - b.value) < 5 * math.hypot(a.standard_error, b.standard_error) + 0.02 * b.value


def test_theory_variance_of_the_log_prob_and_kl_of_one_noisy_layer() -> None:
    """Var[log pi_delta] = sigma^2 ||g||^2 and KL(pi || pi_delta) = sigma^2 tr(F) / 2, within sampling error."""
    torch.manual_seed(1)
    draws, width, vocabulary, sigma = 20_000, 16, 11, 0.02
    head = torch.randn(vocabulary, width, dtype=torch.float64)
    hidden = torch.randn(width, dtype=torch.float64)
    p = (head @ hidden).softmax(-1)
    score = head - p @ head  # row y: d log pi(y) / d h
    noisy = perturb(
        hidden.expand(draws, width).contiguous(),
        torch.tensor(sigma),
        torch.tensor([7, 8], dtype=torch.int32),
        None,
        False,
        0,
        0,
    )[0]
    logprobs = (noisy @ head.T).log_softmax(-1)
    # The variance of a normal is estimated with relative error sqrt(2 / n); the expansion is off by O(sigma^2).
    bound = 4 * math.sqrt(2 / draws) + 30 * sigma**2
    assert (logprobs.var(0) / (sigma**2 * score.square().sum(-1)) - 1).abs().max().item() < bound
    kl = (p * (p.log() - logprobs)).sum(-1)
    fisher_trace = (p[:, None] * score.square()).sum()
    expected = sigma**2 * fisher_trace.item() / 2
    assert abs(kl.mean().item() - expected) < 4 * kl.std().item() / math.sqrt(draws) + 30 * sigma**2 * expected


def test_theory_on_a_whole_model() -> None:
    """The same for all tokens of a model with noise in one layer; tokens sampled from it, so that curvature is tr F."""
    model = Plain().double()
    perturbation = Perturbation(model, sigma=0.1, layers=[1], relative=False)
    ids = tokens(16, 2)
    p = model(ids)[:, 0].softmax(-1).detach()
    inputs: list[Tensor] = []
    handle = model.blocks[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logprobs = model(ids)[:, 0].log_softmax(-1)
    handle.remove()
    fisher = torch.zeros(16, dtype=torch.float64)
    norms = []
    for y in range(logprobs.shape[1]):  # sequences are independent: one backward per token of the alphabet
        (gradient,) = torch.autograd.grad(logprobs[:, y].sum(), inputs[0], retain_graph=True)
        norms.append(gradient.square().sum((-1, -2)))
        fisher += p[:, y] * norms[-1]
    sigma, kls, squares = 1e-2, [], []
    with torch.no_grad():
        for pair in range(200):
            for antithetic in (False, True):
                with (
                    perturbation.probing(sigma=sigma, layers=[1]),
                    perturbation.active(step=pair, antithetic=antithetic),
                ):
                    noisy = model(ids)[:, 0].log_softmax(-1)
                kls.append((p * (p.log() - noisy)).sum(-1).mean().item())
                squares.append((noisy - logprobs).square().mean().item())
    mean, error = mean_and_error([(a + b) / 2 for a, b in zip(kls[::2], kls[1::2], strict=True)])
    assert abs(mean - sigma**2 * fisher.mean().item() / 2) < 4 * error
    mean, error = mean_and_error([(a + b) / 2 for a, b in zip(squares[::2], squares[1::2], strict=True)])
    assert abs(mean - sigma**2 * torch.stack(norms).mean().item()) < 4 * error


def test_closed_forms_at_the_logits() -> None:
    logits = torch.randn(3, 5, 9, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(0, 9, (3, 5))
    logprobs = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad(logprobs.gather(-1, chosen[..., None]).sum(), logits, retain_graph=True)
    torch.testing.assert_close(score_norm(logits, chosen), gradient.square().sum(-1))
    p = logprobs.exp()
    expected = sum(p[..., y] * score_norm(logits, torch.full((3, 5), y)) for y in range(9))
    torch.testing.assert_close(logit_fisher_trace(logits), expected)
    fisher = torch.diag(p[0, 0]) - torch.outer(p[0, 0], p[0, 0])
    torch.testing.assert_close(logit_fisher_trace(logits)[0, 0], fisher.trace())


def test_a_certain_token_has_no_score() -> None:
    logits = torch.tensor([100.0, 0.0])
    assert score_norm(logits, torch.tensor(0)).item() == pytest.approx(0)
    assert score_norm(logits, torch.tensor(1)).item() == pytest.approx(2)
    assert score_norm(logits.bfloat16(), torch.tensor(1)).dtype == torch.float32


# --- budget and manners -------------------------------------------------------------------------------------------


def test_a_probe_changes_nothing_of_what_it_probes() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=(0.1, 0.2, 0.3), layers=[1], learnable=True)
    perturbation.gain = 0.5
    with perturbation.active(step=3):
        expected = model(IDS)
    effect = perturbation.effect()
    state = perturbation.state_dict()
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=0)
    gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT)
    assert str(perturbation.state_dict()) == str(state)
    assert perturbation.effect() == effect
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 3
    with perturbation.active(step=3):
        assert torch.equal(model(IDS), expected)


def test_a_budget_of_tokens_ends_the_probe() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.1)
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    # One clean forward and four pairs fit: a whole round, and layer 0 once more.
    report = noise_sharpness(
        perturbation, probe(model), mask_BT=mask_BT, step=0, pairs=5, budget=Budget(tokens=28 * (1 + 2 * 4))
    )
    assert report.exhausted
    assert report.tokens == 28 * 9
    assert [entry.samples for entry in report.layers] == [2, 1, 1]
    report = gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT, draws=9, budget=Budget(tokens=28 * 3))
    assert (report.tokens, [entry.samples for entry in report.layers]) == (28 * 3, [2, 2, 2])


def test_a_budget_that_allows_nothing_gives_nan() -> None:
    perturbation = Perturbation(Plain(), sigma=0.1)
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    for report in (
        noise_sharpness(perturbation, lambda: pytest.fail("ran"), mask_BT=mask_BT, step=0, budget=Budget(tokens=1)),
        gradient_sharpness(perturbation, lambda: pytest.fail("ran"), mask_BT=mask_BT, budget=Budget(tokens=1)),
    ):
        assert report.exhausted
        assert all(math.isnan(entry.value) and entry.samples == 0 for entry in report.layers)


def test_a_budget_of_seconds_ends_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("tailwatch_alp.budget.time.monotonic", lambda: float(next(clock)))
    perturbation = Perturbation(model := Plain(), sigma=0.1)
    report = noise_sharpness(
        perturbation, probe(model), mask_BT=torch.ones(4, 7, dtype=torch.bool), step=0, budget=Budget(seconds=3.5)
    )
    assert report.exhausted
    assert [entry.samples for entry in report.layers] == [1, 1, 0]


def test_probes_that_cannot_be_run() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.1)
    mask_BT = torch.ones(4, 7, dtype=torch.bool)
    with pytest.raises(ProbeError, match="empty"):
        noise_sharpness(perturbation, probe(model), mask_BT=~mask_BT, step=0)
    with pytest.raises(ProbeError, match="0 samples"):
        gradient_sharpness(perturbation, probe(model), mask_BT=mask_BT, draws=0)
    with pytest.raises(LayerRangeError, match="layer 7"):
        noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=0, layers=7)
    with pytest.raises(ProbeError, match="depend"):
        gradient_sharpness(perturbation, lambda: torch.zeros(4, 7), mask_BT=mask_BT)
    with pytest.raises(ProbeError, match="seconds=0"):
        Budget(seconds=0)
    with perturbation.active(step=0):
        model(IDS)
        with pytest.raises(NestedActivationError, match="probe"):
            noise_sharpness(perturbation, probe(model), mask_BT=mask_BT, step=0)
