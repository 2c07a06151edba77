"""Scaled sums: what is zero must not hide what is small."""

from __future__ import annotations

import numpy as np

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import schema, summarise
from tailwatch_collectors.summary.scaled import sum_scaled
from tailwatch_collectors.types import BatchMeta


def test_a_zero_does_not_lift_the_common_exponent() -> None:
    total = sum_scaled(np.array([0.0, 0.5]), np.array([0, -1_000_000]))
    assert (float(total.mantissa), int(total.exponent)) == (0.5, -1_000_000)


def test_zeros_alone_are_zero() -> None:
    total = sum_scaled(np.zeros(3), np.array([0, 7, -9]))
    assert (float(total.mantissa), int(total.exponent)) == (0.0, 0)


def test_opposite_extremes_sum_alike_in_one_batch_and_in_two() -> None:
    rows = [([-1e6], [-1.0]), ([-1.0], [-1e6])]
    meta = BatchMeta(step=1)
    whole = summarise(Batch.from_arrays(meta, infer_logprobs=[r[0] for r in rows], train_logprobs=[r[1] for r in rows]))
    first, second = (
        summarise(Batch.from_arrays(meta, infer_logprobs=[infer], train_logprobs=[train])) for infer, train in rows
    )
    merged = first.merge(second)
    index = schema.TOKEN_SCALED.index("reverse_k1_negative")
    assert whole.token_scaled.mantissa[index] == merged.token_scaled.mantissa[index] > 0
    assert whole.token_scaled.exponent[index] == merged.token_scaled.exponent[index]
