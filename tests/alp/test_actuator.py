"""Switching as directed, alone; two ranks are in `test_distributed.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwatch_alp import Perturbation
from tailwatch_alp.actuator import Actuator, Setting
from tailwatch_alp.errors import ModelChangedError
from tests.alp.models import Plain, tokens

IDS = tokens(2, 9)


class Service:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.says: Any = None

    def __call__(self) -> Mapping[str, Any] | None:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[no-any-return]


def directed(version: int = 1, **changes: Any) -> dict[str, Any]:
    content = {"version": version, "state": "on", "strength": 0.2, "layers": "all", "clip": [0.5, 4.0]}
    return content | {"apply_from_step": 5, "ttl_steps": 4} | changes


def make(*, decay_steps: int = 4, model: Plain | None = None) -> tuple[Actuator, Service]:
    service = Service()
    perturbation = Perturbation(model or Plain(), sigma=0.1)
    return Actuator(perturbation, source=service, decay_steps=decay_steps), service


def summary(setting: Setting) -> tuple[str, float]:
    return setting.state, round(setting.strength, 6)


def is_noisy(actuator: Actuator, step: int) -> bool:
    model = actuator.perturbation.model
    clean = model(IDS)
    with actuator.active(step=step):
        return not torch.equal(model(IDS), clean)


def test_a_whole_life() -> None:
    actuator, service = make()
    told: list[tuple[str, float]] = []
    for step in range(14):
        service.says = directed() if step >= 2 else None
        setting = actuator.step(step)
        told.append(summary(setting))
        assert is_noisy(actuator, step) == (setting.strength > 0)
        assert actuator.perturbation.gain * 0.2 == pytest.approx(setting.strength)
    assert told == [
        *[("off", 0.0)] * 5,
        *[("on", 0.2)] * 4,
        ("decay", 0.15),
        ("decay", 0.1),
        ("decay", 0.05),
        *[("off", 0.0)] * 2,
    ]


def test_renewing_keeps_it_on_and_the_newest_wins() -> None:
    actuator, service = make()
    for step in range(5, 40):
        service.says = directed(version=step, apply_from_step=step, strength=0.1 if step < 20 else 0.3)
        assert summary(actuator.step(step)) == ("on", 0.1 if step < 20 else 0.3)
    service.says = directed(version=7, apply_from_step=40)
    assert actuator.step(40).version == 39
    service.says = directed(version=40, state="off", apply_from_step=41)
    assert actuator.step(41).state == "off"
    assert not is_noisy(actuator, 41)


def test_layers_and_clip_come_with_it() -> None:
    actuator, service = make()
    service.says = directed(layers=[2], clip=[0.8, 1.28])
    setting = actuator.step(5)
    assert (setting.layers, setting.clip) == ((2,), (0.8, 1.28))
    assert actuator.perturbation.layers == (2,)
    assert actuator.perturbation.sigma == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("state", ["off", "shadow", "locked"])
def test_states_without_noise(state: str) -> None:
    actuator, service = make()
    service.says = directed(state=state)
    assert summary(actuator.step(5)) == (state, 0.0)
    assert not is_noisy(actuator, 5)
    assert actuator.step(9).state == "off"


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2, "state": "maximum"},
        "on",
        [1],
        directed(2, strength=1e9),
        directed(2, layers=[99]),
        directed(2, layers="some"),
        directed(2, apply_from_step=0, ttl_steps=3),
        RuntimeError("the service is away"),
    ],
)
def test_nonsense_is_refused_counted_and_changes_nothing(wrong: Any) -> None:
    actuator, service = make()
    service.says = directed()
    actuator.step(5)
    service.says = wrong
    assert summary(actuator.step(6)) == ("on", 0.2)
    assert actuator.refused == 1
    assert actuator.last_refusal
    service.says = directed(3, strength=0.1)
    assert summary(actuator.step(7)) == ("on", 0.1)


def test_the_same_directive_again_is_no_news() -> None:
    actuator, service = make()
    service.says = directed()
    for step in (5, 6, 7):
        actuator.step(step)
    assert actuator.refused == 0


def test_noise_without_effect_ends_the_noise_and_not_the_run() -> None:
    model = Plain().to(torch.bfloat16)
    service = Service()
    actuator = Actuator(Perturbation(model, sigma=0.1, bounds=(1e-9, 1.0)), source=service)
    service.says = directed(strength=1e-6)
    actuator.step(5)
    with actuator.active(step=5):
        model(IDS)
    assert not is_noisy(actuator, 5)
    setting = actuator.step(6)
    assert (setting.state, setting.reason) == ("off", "the noise failed on a rank: see last_failure there")
    assert "survived rounding" in str(actuator.last_failure)
    service.says = directed(2, strength=0.1)
    assert summary(actuator.step(7)) == ("on", 0.1)
    assert is_noisy(actuator, 7)


def test_a_model_that_changed_ends_the_noise_and_not_the_run() -> None:
    model = Plain()
    actuator, service = make(model=model)
    service.says = directed()
    actuator.step(5)
    assert is_noisy(actuator, 5)
    actuator.perturbation.modules[1]._forward_pre_hooks.clear()  # by somebody else, days into the run
    assert not is_noisy(actuator, 5)
    assert actuator.step(6).state == "off"
    assert "hook of layer 1" in str(actuator.last_failure)
    with pytest.raises(ModelChangedError), actuator.perturbation.active(step=6):
        pass


def test_a_resumed_run_goes_on_as_directed() -> None:
    actuator, service = make()
    service.says = directed()
    actuator.step(3)
    state = actuator.state_dict()
    other, silent = make()
    other.load_state_dict(state)
    assert not is_noisy(other, 4)
    assert summary(other.step(5)) == ("on", 0.2)
    silent.says = directed()  # the old one again
    assert summary(other.step(6)) == ("on", 0.2)
    assert summary(other.step(100)) == ("off", 0.0)


def test_a_learned_sigma_is_only_moved_when_told() -> None:
    service = Service()
    perturbation = Perturbation(Plain(), sigma=0.1, learnable=True)
    actuator = Actuator(perturbation, source=service)
    service.says = directed()
    actuator.step(5)
    with torch.no_grad():
        perturbation.scale.log_sigma_L += 0.1
    learned = perturbation.sigma
    actuator.step(6)
    assert perturbation.sigma == learned


@settings(max_examples=40)
@given(
    says=st.lists(
        st.one_of(
            st.none(),
            st.integers(),
            st.builds(
                directed,
                st.integers(0, 30),
                state=st.sampled_from(["off", "shadow", "ramp", "on", "decay", "locked", "?"]),
                strength=st.floats(allow_nan=True, width=32),
                layers=st.sampled_from(["all", "late", [0], [9], None]),
                apply_from_step=st.integers(-1, 30),
                ttl_steps=st.integers(0, 10),
            ),
        ),
        max_size=30,
    )
)
def test_whatever_is_said_it_neither_raises_nor_stays_on(says: list[Any]) -> None:
    actuator, service = make(model=Plain(width=4, layers=3))
    for step, message in enumerate(says):
        service.says = message
        setting = actuator.step(step)
        low, high = actuator.perturbation.scale.bounds
        assert setting.strength == 0 or low / 5 <= setting.strength <= high
        assert (actuator.perturbation.gain > 0) == (setting.strength > 0)
    service.says = None
    assert actuator.step(100).strength == 0
