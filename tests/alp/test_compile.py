"""torch.compile: the same bits as without it, clean outside, and no new trace for another step, sigma or layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from tailwatch_alp import Perturbation
from tailwatch_alp.sharpness import noise_sharpness
from tests.alp.models import Plain, build, chosen_logprobs, tokens

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
IDS = tokens(2, 9)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outputs(model: nn.Module, perturbation: Perturbation, **options: Any) -> Tensor:
    with perturbation.active(**({"step": 0} | options)):
        return model(IDS)  # type: ignore[no-any-return]


def test_a_compiled_model_draws_the_same_noise_and_is_clean_outside() -> None:
    model = build("plain")
    perturbation = Perturbation(model, sigma=0.1, learnable=True)
    clean, noisy = model(IDS), outputs(model, perturbation)
    torch.autograd.backward(noisy.square().mean())
    gradients = [parameter.grad for parameter in model.parameters()]
    sigma_gradient = perturbation.scale.log_sigma_L.grad
    model.zero_grad()
    perturbation.scale.log_sigma_L.grad = None

    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(IDS), clean)
    out = outputs(compiled, perturbation)
    assert torch.equal(out, noisy)
    torch.autograd.backward(out.square().mean())  # after the context
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(perturbation.scale.log_sigma_L.grad, sigma_gradient)
    assert torch.equal(compiled(IDS), clean)


def test_changes_at_run_time_are_not_traced_again() -> None:
    model = build("plain")
    perturbation = Perturbation(model, sigma=0.1)
    counter = CompileCounterWithBackend("eager")
    compiled: Any = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        clean = compiled(IDS)
        first = outputs(compiled, perturbation)
        traced = counter.frame_count
        assert traced == 2  # one graph without the operator, one with it
        results = [first, *(outputs(compiled, perturbation, step=n, micro_batch=n) for n in range(1, 4))]
        perturbation.set_sigma((0.3, 0.2, 0.1))
        results.append(outputs(compiled, perturbation))
        perturbation.gain = 0.5
        results.append(outputs(compiled, perturbation))
        perturbation.set_layers([1])
        results.append(outputs(compiled, perturbation, antithetic=True))
        assert torch.equal(compiled(IDS), clean)
        assert counter.frame_count == traced
        assert torch.equal(results[-1], outputs(model, perturbation, antithetic=True))
    assert len({result.sum().item() for result in results}) == len(results)


def test_a_probe_of_a_compiled_model_is_not_traced_again() -> None:
    model = build("plain")
    perturbation = Perturbation(model, sigma=0.1)
    counter = CompileCounter()
    compiled: Any = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        compiled(IDS)
        outputs(compiled, perturbation)
        traced = counter.frame_count
        reports = [
            noise_sharpness(
                perturbation,
                lambda probed=probed: chosen_logprobs(probed(IDS), IDS),  # type: ignore[misc]
                mask_BT=torch.ones(2, 8, dtype=torch.bool),
                step=0,
                pairs=4,
            )
            for probed in (compiled, model)
        ]
    assert counter.frame_count == traced
    assert reports[0].layers == reports[1].layers


@pytest.mark.slow
def test_a_learned_sigma_survives_the_next_context_before_its_backward() -> None:
    model = Plain(layers=1)
    perturbation = Perturbation(model, sigma=0.1, learnable=True)
    results: list[Tensor | None] = []
    compiled: Any = torch.compile(model)  # saves log sigma itself for backward
    for run in (compiled, model):
        perturbation.scale.log_sigma_L.grad = None
        losses = [outputs(run, perturbation, micro_batch=n).square().mean() for n in range(2)]
        torch.autograd.backward(losses)
        results.append(perturbation.scale.log_sigma_L.grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_blocks_compiled_one_by_one_do_not_trace_once_per_layer() -> None:
    model = Plain(layers=12)
    perturbation = Perturbation(model, sigma=0.1)
    with torch.no_grad():
        noisy = outputs(model, perturbation)
        counter = CompileCounter()
        for block in model.blocks:
            block.compile(backend=counter, fullgraph=True)
        assert torch.equal(outputs(model, perturbation), noisy)
    assert counter.frame_count <= 4


def test_checkpointing_inside_a_compiled_model() -> None:
    class Checkpointed(Plain):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return self.head(x)  # type: ignore[no-any-return]

    model = Checkpointed()
    perturbation = Perturbation(model, sigma=0.1)
    noisy = outputs(model, perturbation)
    torch.autograd.backward(noisy.square().mean())
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    out = outputs(compiled, perturbation)
    with perturbation.active(step=1):  # the next micro-batch begins before this one's backward
        compiled(IDS)
    torch.testing.assert_close(out, noisy)
    torch.autograd.backward(out.square().mean())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_a_compiled_hugging_face_model(name: str) -> None:
    model = build(name)
    perturbation = Perturbation(model, sigma=0.1)
    clean, noisy = model(IDS), outputs(model, perturbation)
    compiled: Any = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS), clean)
    torch.testing.assert_close(outputs(compiled, perturbation), noisy)
    before = compiled(IDS)
    outputs(compiled, perturbation, step=5)
    assert torch.equal(compiled(IDS), before)


@pytest.mark.slow
def test_the_generated_code_of_the_clean_graph_is_that_of_an_unpatched_model() -> None:
    unpatched: Any = torch.compile(Plain(layers=1))
    expected = unpatched(IDS)
    torch._dynamo.reset()
    model = Plain(layers=1)
    model.load_state_dict(unpatched._orig_mod.state_dict())
    perturbation = Perturbation(model, sigma=0.1)
    compiled: Any = torch.compile(model)
    assert torch.equal(compiled(IDS), expected)
    noisy = outputs(compiled, perturbation)
    torch.testing.assert_close(noisy, outputs(model, perturbation), rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(compiled, perturbation), noisy)
    assert torch.equal(compiled(IDS), expected)
