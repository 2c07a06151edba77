"""Comparing summaries: bit by bit, or to what reordering a sum may change."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from tailwatch_collectors.summary import Summary
from tailwatch_collectors.summary.check import leaves


def assert_identical(left: Summary, right: Summary, *, but: Container[str] = ()) -> None:
    """The same bits, -0.0 and all, except in the leaves named."""
    for (path, mine), (_, theirs) in zip(leaves(left), leaves(right), strict=True):
        if path.removeprefix("summary.") in but:
            continue
        if isinstance(mine, tuple):
            assert mine == theirs, path
        else:
            assert mine.shape == theirs.shape, path
            assert mine.dtype == theirs.dtype, path
            assert mine.tobytes() == theirs.tobytes(), f"{path}: {mine} and {theirs}"


def assert_close(left: Summary, right: Summary, *, but: Container[str] = (), relative: float = 1e-12) -> None:
    """Counts, grids, extremes and worst tokens identical; float sums within `relative` of their terms' size."""
    squares = max(left.token_sum("log_ratio_sq"), right.token_sum("log_ratio_sq"))
    other: dict[str, Any] = dict(leaves(right))
    for path, mine in leaves(left):
        name = path.removeprefix("summary.")
        theirs = other[path]
        if name in but or name.endswith(".exponent"):
            continue
        if name.endswith(".mantissa"):
            powers = path.replace("mantissa", "exponent")
            shift = np.clip(other[powers] - dict(leaves(left))[powers], -1_000, 1_000).astype(np.int32)
            np.testing.assert_allclose(np.ldexp(theirs, shift), mine, rtol=relative, err_msg=name)
        elif isinstance(mine, tuple) or mine.dtype.kind != "f" or name.startswith(("minima", "maxima", "worst")):
            exactly = np.array_equal(mine, theirs) if not isinstance(mine, tuple) else mine == theirs
            assert exactly, f"{name}: {mine} and {theirs}"
        else:
            # A deviation from a mean, or a sum of both signs, is right to the size of what was added.
            size = squares + 1 if name.endswith(("m2", "m2_x", "m2_y", "c_xy")) else squares**0.5 + 1
            np.testing.assert_allclose(mine, theirs, rtol=relative, atol=relative * 1e-2 * size, err_msg=name)
