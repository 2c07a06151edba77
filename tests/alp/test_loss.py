"""Every objective against the loops of the reference, its gradient against finite differences of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tailwatch_alp import loss, reference
from tailwatch_alp.errors import LossInputError
from tailwatch_alp.loss import ALP_CLIP, OBJECTIVES, PPO_CLIP, Clip, LossInputs, Objective
from tailwatch_alp.ratio import LEVELS, at_level, log_ratio

LENGTHS = (1, 4, 7)
WIDTH = 7
CLIPS = {"alp": ALP_CLIP, "ppo": PPO_CLIP, "open": Clip(low=0.0, high=1e9, dual=None)}


def inputs(*, spread: float = 0.8, seed: int = 0, filler: float = math.nan, scale: float = 1.0) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH)[None, :] < torch.tensor(LENGTHS)[:, None]
    infer = -torch.rand(3, WIDTH, generator=generator, dtype=torch.float64) * 3
    old = infer + spread * torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(3, WIDTH, generator=generator, dtype=torch.float64)
    pad = torch.full_like(infer, filler)
    return LossInputs(
        logprobs_BT=torch.where(mask, new, pad).requires_grad_(),
        infer_logprobs_BT=torch.where(mask, infer, pad),
        old_logprobs_BT=torch.where(mask, old, pad),
        advantages=scale * torch.tensor([1.3, -0.7, 0.4], dtype=torch.float64),
        mask_BT=mask,
    )


def rows(values_BT: Tensor) -> list[list[float]]:
    return [row[:length].tolist() for row, length in zip(values_BT.detach(), LENGTHS, strict=True)]


def by_loops(name: str, batch: LossInputs, *, clip: Clip, moved: Any = None, **weights: Any) -> float:
    assert batch.old_logprobs_BT is not None
    return reference.objective(
        name,
        logprobs=rows(batch.logprobs_BT),
        infer=rows(batch.infer_logprobs_BT),
        old=rows(batch.old_logprobs_BT),
        advantages=batch.advantages.tolist(),
        moved=moved,
        **dataclasses.asdict(clip),
        **weights,
    )


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tis": ({"cap": 1.5}, {"weight_high": 1.5}),
    "tis-sequence": ({"cap": 1.5, "level": "sequence"}, {"weight_high": 1.5, "weight_level": "sequence"}),
    "mis": ({}, {"weight_low": 0.0, "weight_high": 5.0, "weight_level": "sequence"}),
    "mis-geometric": (
        {"level": "geometric", "low": 0.8, "high": 1.2},
        {"weight_low": 0.8, "weight_high": 1.2, "weight_level": "geometric"},
    ),
    "icepop": ({}, {"weight_low": 0.5, "weight_high": 5.0}),
}
CASES = [*OPTIONS, *(name for name in OBJECTIVES if name not in OPTIONS)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_loops(case: str, clip: str, seed: int) -> None:
    name = case.partition("-")[0]
    options, weights = OPTIONS.get(case, ({}, {}))
    batch = inputs(seed=seed)
    answer: Objective = OBJECTIVES[name](batch, clip=CLIPS[clip], **options)
    assert answer.loss.item() == pytest.approx(by_loops(name, batch, clip=CLIPS[clip], **weights), rel=1e-5, abs=1e-6)

    torch.autograd.backward(answer.loss)
    gradient = batch.logprobs_BT.grad
    assert gradient is not None
    assert not gradient[~batch.mask_BT].any()
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            sides = []
            for move in (1e-6, -1e-6):
                moved = rows(batch.logprobs_BT)
                moved[b][t] += move
                sides.append(by_loops(name, batch, clip=CLIPS[clip], moved=moved, **weights))
            expected = (sides[0] - sides[1]) / 2e-6
            assert gradient[b, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_outside_the_mask_does_not_matter(name: str) -> None:
    results = []
    for filler in (math.nan, math.inf, 0.0, 1.0):
        batch = inputs(filler=filler)
        answer = OBJECTIVES[name](batch)
        torch.autograd.backward(answer.loss)
        assert batch.logprobs_BT.grad is not None
        results.append((answer.loss.item(), batch.logprobs_BT.grad))
    for value, gradient in results[1:]:
        assert value == results[0][0]
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_goes_into_the_denominator(name: str) -> None:
    batch = inputs()
    assert batch.old_logprobs_BT is not None
    for denominator in (batch.old_logprobs_BT, batch.infer_logprobs_BT):
        denominator.requires_grad_()
    torch.autograd.backward(OBJECTIVES[name](batch).loss)
    assert batch.old_logprobs_BT.grad is None
    assert batch.infer_logprobs_BT.grad is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_advantages_per_token_or_per_sequence(name: str) -> None:
    batch = inputs()
    spread = dataclasses.replace(batch, advantages=batch.advantages[:, None].expand(3, WIDTH))
    assert OBJECTIVES[name](spread).loss.item() == OBJECTIVES[name](batch).loss.item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_micro_batch_without_a_token_has_no_gradient(name: str) -> None:
    batch = inputs()
    empty = dataclasses.replace(batch, mask_BT=torch.zeros_like(batch.mask_BT))
    answer = OBJECTIVES[name](empty)
    torch.autograd.backward(answer.loss)
    assert answer.loss.item() == 0.0
    assert batch.logprobs_BT.grad is not None
    assert not batch.logprobs_BT.grad.any()
    assert math.isnan(answer.clipped_low.item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_policy_every_objective_is_the_policy_gradient(name: str) -> None:
    batch = inputs(spread=0.0)
    torch.autograd.backward(OBJECTIVES[name](batch).loss)
    weights = batch.mask_BT / batch.mask_BT.sum()
    if name == "gspo":
        weights = batch.mask_BT / batch.mask_BT.sum(-1, keepdim=True) / 3
    assert batch.logprobs_BT.grad is not None
    torch.testing.assert_close(batch.logprobs_BT.grad, -batch.advantages_BT.double() * weights, rtol=1e-5, atol=1e-7)


def test_micro_batches_with_the_normaliser_of_the_batch_add_up() -> None:
    batch = inputs()
    whole = loss.token(batch).loss
    parts = torch.zeros(())
    for b in range(3):
        fields = {field.name: getattr(batch, field.name)[b : b + 1] for field in dataclasses.fields(batch)}
        parts = parts + loss.token(LossInputs(**fields), normaliser=float(sum(LENGTHS))).loss
    torch.testing.assert_close(parts, whole)


def test_the_shares_are_counts() -> None:
    d = torch.tensor([[math.log(0.4), math.log(5.0), math.log(12.0), 0.0]])
    zeros = torch.zeros(1, 4)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for sign, low, high, dual in ((1.0, 0.0, 0.5, 0.0), (-1.0, 0.25, 0.0, 0.25)):
        answer = loss.token(
            LossInputs(logprobs_BT=d, infer_logprobs_BT=zeros, advantages=torch.tensor([sign]), mask_BT=mask)
        )
        assert (answer.clipped_low.item(), answer.clipped_high.item(), answer.dual_clipped.item()) == (low, high, dual)
        torch.testing.assert_close(answer.ratio_BT, torch.tensor([[0.4, 5.0, 12.0, 1.0]]))


def test_rejected_tokens_are_counted() -> None:
    zeros, mask = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    old = torch.tensor([[0.0, math.log(0.4), math.log(6.0), math.log(4.0)]])
    batch = LossInputs(
        logprobs_BT=old, infer_logprobs_BT=zeros, advantages=torch.ones(1), mask_BT=mask, old_logprobs_BT=old
    )
    assert loss.icepop(batch).rejected.item() == 0.5
    assert loss.mis(batch).rejected.item() == 1.0  # the product is 9.6
    assert loss.tis(batch).rejected.item() == 0.0


def test_token_alp_is_bypass_on_a_perturbed_policy() -> None:
    batch = inputs()
    assert loss.token(batch, clip=PPO_CLIP).loss.item() == loss.bypass(batch, clip=PPO_CLIP).loss.item()


@settings(max_examples=30)
@given(
    d=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=6),
    advantage=st.floats(-5, 5, width=32),
    name=st.sampled_from(sorted(OBJECTIVES)),
)
def test_any_ratio_gives_a_finite_loss_and_gradient(d: list[float], advantage: float, name: str) -> None:
    new = torch.tensor([d], requires_grad=True)
    zeros = torch.zeros(1, len(d))
    batch = LossInputs(
        logprobs_BT=new,
        infer_logprobs_BT=zeros,
        old_logprobs_BT=new.detach() / 2,
        advantages=torch.tensor([advantage]),
        mask_BT=torch.ones(1, len(d), dtype=torch.bool),
    )
    answer = OBJECTIVES[name](batch)
    torch.autograd.backward(answer.loss)
    assert new.grad is not None
    assert math.isfinite(answer.loss.item())
    assert new.grad.isfinite().all()


def test_log_ratio_and_levels_are_those_of_the_loops() -> None:
    batch = inputs()
    d_BT = log_ratio(batch.logprobs_BT, batch.infer_logprobs_BT, batch.mask_BT)
    for level in LEVELS:
        value_BT = at_level(d_BT, batch.mask_BT, level=level).detach()
        for b, length in enumerate(LENGTHS):
            expected = reference.level_ratios(d_BT[b, :length].tolist(), level=level)
            assert value_BT[b, :length].tolist() == pytest.approx(expected, rel=1e-5)
            assert not value_BT[b, length:].any()


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "gspo", "tis", "mis", "icepop", "cispo"])
def test_the_old_policy_is_asked_for(name: str) -> None:
    batch = dataclasses.replace(inputs(), old_logprobs_BT=None)
    with pytest.raises(LossInputError, match=f"{name}.*old_logprobs_BT"):
        OBJECTIVES[name](batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"infer_logprobs_BT": torch.zeros(3, 6)},
        {"mask_BT": torch.ones(3, WIDTH)},
        {"advantages": torch.zeros(2)},
        {"advantages": torch.zeros(3, 1)},
        {"old_logprobs_BT": torch.zeros(3)},
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Tensor]) -> None:
    with pytest.raises(LossInputError, match=f"{next(iter(changes))}|expected"):
        dataclasses.replace(inputs(), **changes)


@pytest.mark.parametrize(
    ("low", "high", "dual"), [(1.1, 2.0, None), (0.5, 0.9, None), (0.5, 2.0, 1.0), (-0.1, 2.0, None)]
)
def test_a_clip_that_is_none(low: float, high: float, dual: float | None) -> None:
    with pytest.raises(LossInputError, match="low"):
        Clip(low=low, high=high, dual=dual)
