"""The normal quantile against scipy."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from tailwatch_service.statistics.normal import normal_quantile


def test_against_scipy() -> None:
    p = np.concatenate((10.0 ** np.arange(-300, -1, 0.5), np.linspace(0.01, 0.99, 981), 1 - 10.0 ** np.arange(-15, -1)))
    np.testing.assert_allclose(normal_quantile(p), norm.ppf(p), rtol=1e-14, atol=1e-16)


def test_the_middle_and_symmetry() -> None:
    assert normal_quantile(np.array([0.5])).tolist() == [0.0]
    p = np.array([0.001, 0.075, 0.0750001, 0.25])
    np.testing.assert_allclose(normal_quantile(p), -normal_quantile(1 - p), rtol=1e-12)
