from __future__ import annotations

import math

import numpy as np
import pytest

from lab.mismatch import mismatch
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta


def _batch(d: list[float]) -> Batch:
    train = np.zeros(len(d), np.float32)
    return Batch.from_arrays(
        BatchMeta(step=0), infer_logprobs=[train - np.array(d, np.float32)], train_logprobs=[train]
    )


def test_by_hand() -> None:
    found = mismatch(_batch([1.0, -0.5, 0.0]))
    assert found.abs_mean == pytest.approx(0.5)
    assert found.abs_max == 1.0
    assert found.kl_k3 == pytest.approx((math.e - 2 + math.exp(-0.5) - 0.5) / 3)


def test_tiny_ratios_are_not_lost_in_rounding() -> None:
    assert mismatch(_batch([2.0**-23] * 4)).kl_k3 == pytest.approx(2.0**-47, rel=1e-4)


def test_no_tokens_is_missing_not_zero() -> None:
    assert all(math.isnan(value) for value in mismatch(_batch([])))
