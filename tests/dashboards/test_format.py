"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from tailwatch_dashboards import format as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0012345, "0.00123"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (12345.6, "12,300"),
        (-0.25, "−0.250"),
        (1.3e-13, "1.30×10⁻¹³"),
        (2.5e9, "2.50×10⁹"),
        (0.0, "0"),
        (0.99996, "1.00"),
        (math.nan, "–"),
        (math.inf, "–"),
        (None, "–"),
    ],
)
def test_three_significant_digits(value: float | None, text: str) -> None:
    assert fmt.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.8, "×1.8"), (0.04, "×0.040"), (64.13, "×64.1"), (None, "–")])
def test_ratios(value: float | None, text: str) -> None:
    assert fmt.times(value) == text


@pytest.mark.parametrize(("value", "text"), [(3454, "3,454"), (1_250_000, "1.25 M"), (7e9, "7 G"), (None, "–")])
def test_counts(value: float | None, text: str) -> None:
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-2, "0 s"), (59, "59 s"), (840, "14 min"), (7300, "2 h"), (9e5, "10 d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert fmt.age(seconds) == text


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\mathbb{E}[e^{d} - 1 - d]", "E[e^d - 1 - d]"),
        (r"\tfrac12\mathbb{E}[d^2]", "½E[d²]"),
        (r"\Pr(|d| > \ln 2)", "P(|d| > ln 2)"),
        (r"\mathbb{E}_i[e^{-\bar\mu_i}]", "E_i[e^(-μ̄_i)]"),
        (r"\mathrm{sd}\,|e^{\pi}-e^{\mu}|", "sd |e^π-e^μ|"),
        (r"\tfrac1M\sum_{j\le M} x_j", "(1/M)Σ_(j≤ M) x_j"),
    ],
)
def test_formulas_read_as_one_line(latex: str, text: str) -> None:
    assert fmt.formula(latex) == text
