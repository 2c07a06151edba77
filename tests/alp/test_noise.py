"""The counter-based normals and the operator that adds them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tailwatch_alp import reference
from tailwatch_alp.errors import KeyRangeError
from tailwatch_alp.noise import _dot_rows, _perturb_rows, draw, noise_dot, perturb, stream_keys, token_keys


def keys(**changes: int) -> Tensor:
    fields = {"seed": 1, "step": 2, "micro_batch": 3, "forward": 0, "data_rank": 0, "layers": 4}
    return stream_keys(**(fields | changes))


def added(hidden: Tensor, *, sigma: float = 1.0, relative: bool = False, **rest: Any) -> Tensor:
    key = rest.get("key", keys()[0])
    index = rest.get("token_index")
    return perturb(hidden, torch.tensor(sigma), key, index, relative, 0, 0)[0]  # type: ignore[no-any-return]


def test_the_normals_are_those_of_the_reference() -> None:
    key = keys()[2]
    z_ND = draw(key, tokens=3, features=7)
    for token in range(3):
        for feature in range(7):
            expected = reference.normal(key.tolist(), token=token, feature=feature, features=7)
            assert z_ND[token, feature].item() == pytest.approx(expected, abs=2e-6)


def test_the_stream_keys_are_those_of_the_reference() -> None:
    for layer, row in enumerate(keys().tolist()):
        assert row == reference.stream_key([1, 2, 3, 0, 0, layer])


def test_the_distribution_is_standard_normal() -> None:
    z = draw(keys()[0], tokens=2000, features=256).flatten().double()
    count = z.numel()
    assert abs(z.mean().item()) < 4 / math.sqrt(count)
    assert abs(z.square().mean().item() - 1) < 4 * math.sqrt(2 / count)
    assert abs(z.pow(3).mean().item()) < 4 * math.sqrt(15 / count)
    assert abs(z.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / count)
    # Kolmogorov-Smirnov against the normal distribution: 1.95 is exceeded once in 1,000.
    empirical = torch.arange(1, count + 1, dtype=torch.float64) / count
    exact = torch.special.ndtr(z.sort().values)
    assert (exact - empirical).abs().max().item() * math.sqrt(count) < 1.95
    assert 4.2 < z.abs().max().item() < 6.7


def test_entries_are_uncorrelated_across_tokens_features_layers_and_steps() -> None:
    tokens, features = 512, 128
    z = draw(keys()[0], tokens=tokens, features=features)
    others = {
        "next token": z.roll(1, 0),
        "next feature": z.roll(1, 1),
        "the other half of the pair": z.roll(features // 2, 1),
        "next layer": draw(keys()[1], tokens=tokens, features=features),
        "next step": draw(keys(step=3)[0], tokens=tokens, features=features),
        "next micro-batch": draw(keys(micro_batch=4)[0], tokens=tokens, features=features),
        "next forward": draw(keys(forward=1)[0], tokens=tokens, features=features),
        "next rank": draw(keys(data_rank=1)[0], tokens=tokens, features=features),
        "next seed": draw(keys(seed=2)[0], tokens=tokens, features=features),
    }
    for name, other in others.items():
        for power in (1, 2):  # products of squares see what a sign would hide
            a, b = z.pow(power), other.pow(power)
            correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()
            assert abs(correlation) < 4.5 / math.sqrt(z.numel()), (name, power, correlation)


def test_neighbouring_ranks_and_layers_share_no_stream() -> None:
    rows = [tuple(row) for rank in range(16) for row in keys(data_rank=rank, layers=36).tolist()]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("features", [1, 2, 7, 64, 1000])
def test_a_token_keeps_its_noise_wherever_it_lies(features: int) -> None:
    key = keys()[0]
    whole = draw(key, tokens=300, features=features)
    index = torch.tensor([299, 5, 5, 130])
    assert torch.equal(draw(key, tokens=4, features=features, token_index=index), whole[index])


def test_a_chunk_boundary_leaves_no_trace() -> None:
    hidden = torch.randn(200, 1024)  # several chunks
    whole = added(hidden, relative=True)
    index = torch.arange(150, 200)
    assert torch.equal(added(hidden[150:], relative=True, token_index=index), whole[150:])


def test_the_operator_adds_what_the_reference_says() -> None:
    hidden = torch.randn(2, 3, 8)
    for relative in (True, False):
        expected = reference.perturbed(hidden.tolist(), key=keys()[1].tolist(), sigma=0.3, relative=relative)
        actual = added(hidden, sigma=0.3, relative=relative, key=keys()[1])
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_antithetic_noise_is_the_mirror_image() -> None:
    hidden = torch.zeros(5, 16)
    assert torch.equal(added(hidden, sigma=-0.5), -added(hidden, sigma=0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_added_in_float32_and_cast_back(dtype: torch.dtype) -> None:
    hidden = torch.randn(64, 32).to(dtype)
    expected = (
        hidden.float()
        + 0.1 * hidden.float().square().mean(-1, keepdim=True).sqrt() * draw(keys()[0], tokens=64, features=32)
    ).to(dtype)
    actual = added(hidden, sigma=0.1, relative=True)
    assert actual.dtype == dtype
    assert (actual != expected).float().mean() < 0.01  # the order of a product may move a rounding
    torch.testing.assert_close(actual, expected)


def test_float64_stays_float64() -> None:
    hidden = torch.randn(4, 8, dtype=torch.float64)
    assert added(hidden, sigma=1e-9).dtype == torch.float64
    assert not torch.equal(added(hidden, sigma=1e-9), hidden)


def test_a_coefficient_of_zero_leaves_every_bit() -> None:
    hidden = torch.tensor([[-0.0, 0.0, 1.0, -2.0]])
    out = added(hidden, sigma=0.0)
    assert torch.equal(out.view(torch.int32), hidden.view(torch.int32))
    assert out.data_ptr() != hidden.data_ptr()
    turned = torch.randn(2, 4, 3).transpose(1, 2)  # a compiler was told that the answer is contiguous
    assert added(turned, sigma=0.0).is_contiguous()
    assert torch.equal(added(turned, sigma=0.0), turned)


def test_gradients_of_state_and_coefficient() -> None:
    hidden = torch.randn(2, 5, 6, requires_grad=True)
    coefficient = torch.tensor(0.2, requires_grad=True)
    weight = torch.randn(2, 5, 6)
    key = keys()[0]
    (perturb(hidden, coefficient, key, None, True, 0, 0)[0] * weight).sum().backward()
    assert hidden.grad is not None
    assert coefficient.grad is not None
    assert torch.equal(hidden.grad, weight)  # the RMS is held constant
    rms = hidden.detach().square().mean(-1, keepdim=True).sqrt()
    z = draw(key, tokens=10, features=6).view(2, 5, 6)
    torch.testing.assert_close(coefficient.grad, (weight * rms * z).sum())


@pytest.mark.parametrize("sigma", [0.2, 0.0])
def test_torch_accepts_the_operator(sigma: float) -> None:
    hidden = torch.randn(2, 4, 3).transpose(1, 2).requires_grad_()
    arguments = (hidden, torch.tensor(sigma, requires_grad=True), keys()[0], None)
    torch.library.opcheck(perturb, (*arguments, True, 0, 0))


def test_the_gradient_of_sigma_is_not_rounded_by_autocast() -> None:
    grad, rms, key = torch.randn(40, 64), torch.rand(40), keys()[0]
    expected = noise_dot(grad, rms, key, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise_dot(grad, rms, key, None), expected)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_batch_that_overflowed_does_not_move_sigma(wrong: float) -> None:
    grad = torch.randn(4, 8)
    grad[1, 2] = wrong
    assert noise_dot(grad, torch.ones(4), keys()[0], None).item() == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_fused_kernel_of_accelerators_draws_the_same_normals_and_stores_none() -> None:
    """Compiled for the CPU here: what is traced is the same, and the code shows which buffers it makes."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    hidden, rms, coefficient = torch.randn(40, 33), torch.rand(40), torch.tensor(0.1)
    first_N, second_N = token_keys(keys()[0], index_N=torch.arange(40))
    cases: list[tuple[Any, tuple[Any, ...], int]] = [
        (_perturb_rows, (hidden, coefficient, first_N, second_N, True), 1),  # the answer
        (_dot_rows, (hidden, rms, first_N, second_N), 0),
    ]
    for function, arguments, buffers in cases:
        compiled: Any = torch.compile(function, dynamic=True, fullgraph=True)
        result, code = run_and_get_code(compiled, *arguments)
        torch.testing.assert_close(result, function(*arguments), rtol=1e-5, atol=1e-5)
        made = re.findall(r"= empty_strided_cpu\(\((.*?)\), \(", "".join(code))
        assert len(made) >= 1
        assert sum("," in sizes.rstrip(", ") for sizes in made) == buffers, made


@pytest.mark.parametrize("index", [torch.tensor([3]), torch.arange(20), torch.rand(10)])
def test_token_numbers_that_do_not_fit(index: Tensor) -> None:
    # One number for all tokens would broadcast: every token the same noise.
    with pytest.raises(KeyRangeError, match="for 10 tokens: expected one integer per token"):
        added(torch.randn(2, 5, 8), token_index=index)


def test_an_empty_micro_batch() -> None:
    assert added(torch.randn(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("step", [1.5, "3", None])
def test_a_key_that_is_no_integer(step: Any) -> None:
    with pytest.raises(KeyRangeError, match=r"step=.*expected an integer"):
        keys(step=step)


@pytest.mark.parametrize("field", ["seed", "step", "micro_batch", "forward", "data_rank"])
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_keys_out_of_range(field: str, value: int) -> None:
    with pytest.raises(KeyRangeError, match=f"{field}={value}"):
        keys(**{field: value})
