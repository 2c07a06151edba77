"""Recompute: backward sees the noise of its forward, under both kinds of checkpointing and in every order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tailwatch_alp import Perturbation
from tailwatch_alp.errors import HiddenStateError, RecomputeError
from tailwatch_alp.hooks import Ledger, check_hidden
from tailwatch_alp.noise import perturb
from tests.alp.models import Encoder, Plain, hugging_face, tokens


class Checkpointed(Plain):
    """Recomputes whole blocks, hooks included."""

    use_reentrant: bool | None = False

    def embed(self, ids: Tensor) -> Tensor:
        return self.token(ids)  # type: ignore[no-any-return]

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            plain = self.use_reentrant is None or not torch.is_grad_enabled()
            x = block(x) if plain else checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.run(self.embed(tokens))


def gradients(use_reentrant: bool | None, play: Callable[[Checkpointed, Perturbation], None]) -> list[Tensor]:
    torch.manual_seed(0)
    model = Checkpointed()
    model.use_reentrant = use_reentrant
    play(model, Perturbation(model, sigma=0.2, learnable=True))
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def inside(model: Checkpointed, perturbation: Perturbation) -> None:
    with perturbation.active(step=0):
        model(tokens(2, 9)).square().mean().backward()


def after(model: Checkpointed, perturbation: Perturbation) -> None:
    with perturbation.active(step=0):
        loss = model(tokens(2, 9)).square().mean()
    loss.backward()


def after_clean_forwards(model: Checkpointed, perturbation: Perturbation) -> None:
    with perturbation.active(step=0):
        loss = model(tokens(2, 9)).square().mean()
    with torch.no_grad():
        model(tokens(2, 9))
    model(tokens(2, 9))
    loss.backward()


def interleaved(model: Checkpointed, perturbation: Perturbation) -> None:
    losses = []
    for micro_batch in range(3):
        with perturbation.active(step=0, micro_batch=micro_batch):
            losses.append(model(tokens(2, 9, seed=micro_batch)).square().mean())
    with perturbation.active(step=0, micro_batch=3):
        losses[1].backward()  # as a pipeline schedule does
        losses.append(model(tokens(2, 9, seed=3)).square().mean())
    sum((losses[0], losses[2], losses[3]), torch.zeros(())).backward()


def clean_and_noisy(model: Checkpointed, perturbation: Perturbation) -> None:
    clean = model(tokens(2, 9))
    with perturbation.active(step=0):
        noisy = model(tokens(2, 9))
        (clean - noisy).square().mean().backward()


def two_in_one(model: Checkpointed, perturbation: Perturbation) -> None:
    with perturbation.active(step=0):
        loss = model(tokens(2, 9)).square().mean() + model(tokens(2, 9)).pow(3).mean()
    loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("play", [inside, after, after_clean_forwards, interleaved, two_in_one])
def test_gradients_are_those_without_checkpointing(play: Any, use_reentrant: bool) -> None:
    for with_checkpoint, without in zip(gradients(use_reentrant, play), gradients(None, play), strict=True):
        # Recomputing moves the order in which gradients of several forwards are summed, and nothing else.
        torch.testing.assert_close(with_checkpoint, without, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_clean_and_a_noisy_forward_in_one_backward(use_reentrant: bool) -> None:
    for with_checkpoint, without in zip(
        gradients(use_reentrant, clean_and_noisy), gradients(None, clean_and_noisy), strict=True
    ):
        torch.testing.assert_close(with_checkpoint, without, rtol=1e-5, atol=1e-7)


@contextmanager
def recorded_noise() -> Iterator[list[tuple[int, Tensor]]]:
    """Every output of the operator, with its layer."""
    seen: list[tuple[int, Tensor]] = []

    def record(*arguments: Any) -> Any:
        out = perturb(*arguments)
        seen.append((arguments[6], out[0].detach().clone()))
        return out

    with mock.patch("tailwatch_alp.hooks.perturb", record):
        yield seen


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_forward_and_recompute_are_the_same_bits(use_reentrant: bool) -> None:
    model = Checkpointed()
    model.use_reentrant = use_reentrant
    perturbation = Perturbation(model, sigma=0.2)
    with recorded_noise() as seen:
        with perturbation.active(step=0):
            loss = model(tokens(2, 9)).square().mean()
        forward = dict(seen)
        seen.clear()
        loss.backward()
    assert sorted(layer for layer, _ in seen) == [0, 1, 2]
    assert all(torch.equal(state, forward[layer]) for layer, state in seen)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_hugging_face_checkpointing(name: str, use_reentrant: bool) -> None:
    results = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = hugging_face(name).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        perturbation = Perturbation(model, sigma=0.1)
        with perturbation.active(step=0):
            loss = model(tokens(2, 9), use_cache=False).logits.square().mean()
        loss.backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_torchs_own_layers_recompute_after_the_context_and_keep_their_fused_path(use_reentrant: bool) -> None:
    ids = tokens(2, 9)
    results = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        model = Encoder()
        with torch.no_grad():
            fused = model.eval()(ids)
        model.train()
        perturbation = Perturbation(model, sigma=0.2)
        with perturbation.active(step=0):
            x = model.token(ids)
            for layer in model.encoder.layers:
                x = checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointing else layer(x)
        model.head(x).square().mean().backward()
        results.append([parameter.grad for parameter in model.parameters()])
        with torch.no_grad():
            assert torch.equal(model.eval()(ids), fused)
        assert not any(layer._forward_pre_hooks for layer in model.encoder.layers)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_same_embeddings_twice_cannot_be_told_apart() -> None:
    model = Checkpointed()
    perturbation = Perturbation(model, sigma=0.2)
    embeddings = model.embed(tokens(2, 9))
    with perturbation.active(step=0):
        first = model.run(embeddings)
    with perturbation.active(step=1):
        second = model.run(embeddings)
    with pytest.raises(RecomputeError, match="layer 0 got the same tensor"):
        torch.autograd.backward(first.mean() + second.mean())


def test_the_same_embeddings_after_backward_are_fine() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.2)
    embeddings = model.token(tokens(2, 9)).detach()
    for step in range(2):
        with perturbation.active(step=step):
            x = embeddings
            for block in model.blocks:
                x = block(x)
            x.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.blocks.parameters()
    )


def moved() -> Any:
    """Saved tensors come back as copies, as offloading makes them."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone())


def after_a_clean_one_without_graph(model: Checkpointed, perturbation: Perturbation) -> None:
    with perturbation.active(step=0):
        loss = model(tokens(2, 9)).square().mean()
    with torch.no_grad():
        model(tokens(2, 9))  # the same weights without noise, for the record
    loss.backward()


def one_after_another(model: Checkpointed, perturbation: Perturbation) -> None:
    for micro_batch in range(3):
        with perturbation.active(step=0, micro_batch=micro_batch):
            loss = model(tokens(2, 9)).square().mean()
        loss.backward()
        with torch.no_grad():
            model(tokens(2, 9))
    model(tokens(2, 9)).square().mean().backward()  # the noise is off from here on


@pytest.mark.parametrize("play", [inside, after, after_a_clean_one_without_graph, one_after_another])
def test_inputs_moved_between_forward_and_recompute(play: Any) -> None:
    with moved():
        with_checkpoint = gradients(False, play)
    for a, b in zip(with_checkpoint, gradients(None, play), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("play", [clean_and_noisy, interleaved, two_in_one])
def test_moved_inputs_of_several_forwards_are_refused_and_not_guessed(play: Any) -> None:
    with moved(), pytest.raises(RecomputeError, match=r"recomputes layer \d .*call backward after each"):
        gradients(False, play)


def test_a_probe_is_not_mistaken_for_a_forward_that_waits() -> None:
    def probed(model: Checkpointed, perturbation: Perturbation) -> None:
        with perturbation.active(step=0):
            loss = model(tokens(2, 9)).square().mean()
        for step in range(2):
            with perturbation.probing(sigma=0.1, layers=[0]), perturbation.active(step=step), torch.no_grad():
                model(tokens(2, 9))
        loss.backward()

    with moved():
        with_checkpoint = gradients(False, probed)
    for a, b in zip(with_checkpoint, gradients(None, probed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_ledger_forgets_what_no_longer_exists() -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.2)
    for step in range(20):
        with perturbation.active(step=step):
            model(tokens(2, 9)).sum().backward()
    perturbation.ledger.prune()
    assert len(perturbation.ledger) == 0
    model.eval()
    with torch.no_grad():
        for _ in range(5):
            model(tokens(1, 1))
    assert len(perturbation.ledger) == 0  # generation leaves no trace
    model.train()
    with torch.inference_mode():
        model(tokens(1, 1))
    assert len(perturbation.ledger) == 0


def test_a_full_ledger_is_not_searched_at_every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailwatch_alp.hooks._LEDGER_LIMIT", 8)
    ledger, pruned = Ledger(), 0
    prune = ledger.prune

    def count() -> None:
        nonlocal pruned
        pruned += 1
        prune()

    monkeypatch.setattr(ledger, "prune", count)
    alive = [torch.zeros(1) for _ in range(1000)]
    for hidden in alive:
        ledger.remember(0, hidden, given=None)
    assert len(ledger) == 1000
    assert pruned < 12


def test_a_nested_tensor_is_refused() -> None:
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)], layout=torch.jagged)
    with pytest.raises(HiddenStateError, match="packed into one row"):
        check_hidden(nested, module=nn.Linear(8, 8))


def test_backward_keeps_no_activation_for_the_noise() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    hidden = torch.randn(64, 32, requires_grad=True)
    key = torch.tensor([1, 2], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        perturb(hidden, torch.tensor(0.1), key, None, True, 0, 0)
        assert kept == []
        perturb(hidden, torch.tensor(0.1, requires_grad=True), key, None, True, 0, 0)
        assert sorted(kept) == [2, 64]  # the key, and one RMS per token


def test_layers_that_run_twice_in_a_forward_get_two_noises() -> None:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Plain(layers=1)

        def forward(self, ids: Tensor) -> Tensor:
            block = self.inner.blocks[0]
            return block(block(self.inner.token(ids)))  # type: ignore[no-any-return]

    model = Looped()
    with recorded_noise() as seen, Perturbation(model, sigma=0.2).active(step=0):
        model(tokens(2, 9))
    assert len(seen) == 2
