"""What two backends must agree on: counts, grids, extremes and picked tokens exactly, sums to 1e-12 of their terms."""

from __future__ import annotations

import numpy as np

from tailwatch_collectors.summary import Summary, schema
from tests.oracles.compare import assert_close

_CONDITIONED = {"minima", "maxima", "cluster_sums", "cluster_extras", "length_sums", "sequence_scaled.mantissa"}
"""Functions of sums that cancel, or of an exponential of one: right to the size of what was added."""


def assert_agree(left: Summary, right: Summary) -> None:
    """The summaries of one batch by two backends."""
    assert_close(left, right, but=_CONDITIONED)
    total = right.token_sum("log_ratio_positive") + right.token_sum("log_ratio_negative")
    for index in range(len(schema.SEQUENCE_SCALED)):
        a, b = left.sequence_scaled.log(index), right.sequence_scaled.log(index)
        assert a == b or abs(a - b) <= 1e-12 + 4e-16 * total + 1e-15 * abs(b), schema.SEQUENCE_SCALED[index]
    size = 1 + right.token_sum("log_ratio_sq") * right.tokens
    for name in ("cluster_sums", "cluster_extras", "length_sums"):
        mine, theirs = getattr(left, name), getattr(right, name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14 * size, err_msg=name)
    for name, order in (("minima", schema.MINIMA), ("maxima", schema.MAXIMA)):
        mine, theirs = getattr(left, name), getattr(right, name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14 * (1 + total), err_msg=name)
        exact = [order.index("log_ratio"), order.index("lag")]
        assert mine[exact].tolist() == theirs[exact].tolist(), name
