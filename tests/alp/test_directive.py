"""Reading a directive."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tailwatch_alp.directive import STATES, Directive
from tailwatch_alp.errors import DirectiveError

GOOD: dict[str, Any] = {
    "version": 3,
    "state": "on",
    "strength": 0.2,
    "layers": [0, 2],
    "clip": [0.5, 4.0],
    "apply_from_step": 10,
    "ttl_steps": 20,
}


def test_a_directive_comes_back_as_it_went() -> None:
    directive = Directive.from_mapping(GOOD | {"mode": "enforce"})
    assert directive.to_mapping() == GOOD
    assert directive.expires_at == 30
    assert directive.noisy


@pytest.mark.parametrize("state", STATES)
def test_only_three_states_have_noise(state: str) -> None:
    assert Directive.from_mapping(GOOD | {"state": state}).noisy == (state in {"ramp", "on", "decay"})


def test_off_needs_no_strength_layers_or_clip() -> None:
    directive = Directive.from_mapping({"version": 0, "state": "off", "apply_from_step": 0, "ttl_steps": 1})
    assert (directive.strength, directive.layers, directive.clip) == (0.0, "all", None)
    assert Directive.from_mapping(GOOD | {"state": "off", "strength": None}).strength == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", -1),
        ("version", None),
        ("version", "3"),
        ("version", True),
        ("state", "ON"),
        ("state", None),
        ("strength", 0),
        ("strength", -0.1),
        ("strength", math.nan),
        ("strength", math.inf),
        ("strength", "0.1"),
        ("strength", None),
        ("layers", 3),
        ("layers", [1.5]),
        ("layers", [True]),
        ("clip", [0.5]),
        ("clip", [1.5, 4.0]),
        ("clip", [0.5, 0.9]),
        ("clip", [math.nan, 4.0]),
        ("clip", "wide"),
        ("apply_from_step", -1),
        ("apply_from_step", 1.5),
        ("ttl_steps", 0),
    ],
)
def test_a_field_that_is_wrong_is_named(field: str, value: object) -> None:
    with pytest.raises(DirectiveError, match=f"{field}="):
        Directive.from_mapping(GOOD | {field: value})
