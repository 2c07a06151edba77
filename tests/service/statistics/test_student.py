from __future__ import annotations

import pytest
from scipy import stats

from tailwatch_service.statistics.student import student_quantile


@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 10, 30, 300, 10**6])
def test_against_scipy(p: float, degrees: int) -> None:
    assert student_quantile(p, degrees=degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-5)
