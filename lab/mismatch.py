"""The few mismatch numbers the lab prints of itself; the service computes the real set. No torch here."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tailwatch_collectors.batch import Batch


class Mismatch(NamedTuple):
    """Moments of d = train log-prob - inference log-prob over the tokens of one batch, nats."""

    abs_mean: float
    """Mean of |d|."""
    abs_max: float
    """Largest |d|."""
    kl_k3: float
    """Mean of exp(d) - 1 - d: the estimate of KL(infer || train)."""


def mismatch(batch: Batch) -> Mismatch:
    """Mismatch of one batch, in float64; NaN without tokens."""
    d_N = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N.astype(np.float64)
    if not len(d_N):
        return Mismatch(float("nan"), float("nan"), float("nan"))
    absolute_N = np.abs(d_N)
    k3_N = np.expm1(d_N) - d_N
    return Mismatch(float(absolute_N.mean()), float(absolute_N.max()), float(k3_N.mean()))
