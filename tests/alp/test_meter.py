"""The effect meter against counts made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tailwatch_alp import Perturbation
from tailwatch_alp.meter import Meter, meter_of
from tailwatch_alp.noise import perturb
from tests.alp.models import Plain, tokens

KEY = torch.tensor([5, 6], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1e-1])
def test_shares_and_sizes_are_those_counted_by_hand(sigma: float, dtype: torch.dtype) -> None:
    hidden = torch.randn(64, 256).to(dtype)
    meter = Meter(layers=3)
    out = perturb(hidden, torch.tensor(sigma), KEY, None, True, meter.handle, 1)[0]
    (effect,) = meter.read()
    assert (effect.layer, effect.tokens) == (1, 64)
    assert effect.changed_share == (out != hidden).float().mean().item()
    difference = (out.double() - hidden.double()).square().mean()
    nominal = (sigma * hidden.double().square().mean(-1).sqrt()).square().mean()
    assert effect.realised_over_nominal == pytest.approx(math.sqrt(difference / nominal), rel=1e-4)
    assert effect.relative_size == pytest.approx(math.sqrt(difference / hidden.double().square().mean()), rel=1e-4)


def test_the_published_default_does_nothing_in_bfloat16() -> None:
    meter = Meter(layers=1)
    perturb(torch.randn(64, 1024).bfloat16(), torch.tensor(1e-6), KEY, None, True, meter.handle, 0)
    (effect,) = meter.read()
    assert effect.changed_share < 0.001
    assert effect.realised_over_nominal < 0.1


def test_at_most_64_tokens_are_looked_at_spread_over_the_batch() -> None:
    meter = Meter(layers=1)
    hidden = torch.zeros(1000, 8)
    hidden[500:] = 1.0
    perturb(hidden, torch.tensor(0.1), KEY, None, True, meter.handle, 0)
    (effect,) = meter.read()
    assert effect.tokens == 64
    assert 0.4 < effect.changed_share < 0.6  # half of the tokens have an RMS of 0


def test_sums_add_up_and_reset() -> None:
    meter = Meter(layers=1)
    for _ in range(3):
        perturb(torch.randn(10, 8), torch.tensor(0.1), KEY, None, True, meter.handle, 0)
    assert meter.read()[0].tokens == 30
    meter.reset()
    assert meter.read() == []
    meter.listening = False
    perturb(torch.randn(10, 8), torch.tensor(0.1), KEY, None, True, meter.handle, 0)
    assert meter.read() == []


def test_nothing_nominal_gives_no_ratio() -> None:
    meter = Meter(layers=1)
    perturb(torch.zeros(4, 8), torch.tensor(0.1), KEY, None, True, meter.handle, 0)
    (effect,) = meter.read()
    assert effect.changed_share == 0.0
    assert math.isnan(effect.realised_over_nominal)


def test_a_meter_lives_as_long_as_its_owner() -> None:
    handle = Meter(layers=1).handle
    assert meter_of(handle) is None
    assert meter_of(0) is None


def test_effects_are_measured_without_reading_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Plain()
    perturbation = Perturbation(model, sigma=0.1)
    with perturbation.active(step=0):
        model(tokens(2, 9))
    monkeypatch.setattr(Meter, "read", lambda _: pytest.fail("read during training"))
    for step in range(1, 40):
        with perturbation.active(step=step):
            model(tokens(2, 9))
