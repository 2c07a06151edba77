"""The data the numbers are tried on: random, heavy-tailed and degenerate log ratios, as float32 log-probs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

Float64Array = NDArray[np.float64]
Lengths = list[int]
Draw = Callable[[np.random.Generator, Lengths], list[Float64Array]]


def batch_of(rows: list[Float64Array], rng: np.random.Generator, *, spacing: float = 0.5, **columns: Any) -> Batch:
    """Log-probs whose difference is d, both at or below 0; what rounding to float32 changes, it changes in both."""
    d = np.concatenate(rows) if rows else np.empty(0)
    infer = -rng.exponential(spacing, len(d)) - np.maximum(d, 0)
    infer32 = infer.astype(np.float32)
    train32 = np.minimum((infer32 + d).astype(np.float32), np.float32(0))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    meta = columns.pop("meta", BatchMeta(step=1))
    return Batch.from_arrays(meta, infer_logprobs=infer32, train_logprobs=train32, cu_seqlens=offsets, **columns)


def normal(scale: float) -> Draw:
    return lambda rng, lengths: [rng.normal(0, scale, n) for n in lengths]


def student_t2(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [0.1 * rng.standard_t(2, n) for n in lengths]


def pareto(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [1e-3 * (1 + rng.pareto(1.1, n)) * rng.choice((-1, 1), n) for n in lengths]


def log_normal(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [1e-2 * rng.lognormal(0, 2, n) * rng.choice((-1, 1), n) for n in lengths]


def many_zeros(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [np.where(rng.random(n) < 0.3, 0, rng.normal(0, 0.05, n)) for n in lengths]


def offset(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [0.3 + rng.normal(0, 1e-3, n) for n in lengths]


def bias_over_length(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [rng.normal(0, 0.02, n) + rng.normal(0, 0.05) for n in lengths]


def all_equal(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [np.full(n, 0.25) for n in lengths]


def all_zero(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    return [np.zeros(n) for n in lengths]


def million(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    """A few tokens at +-1e6 among ordinary ones."""
    rows = [rng.normal(0, 0.1, n) for n in lengths]
    rows[0][0], rows[-1][-1] = 1e6, -1e6
    return rows


def five_thousand(rng: np.random.Generator, lengths: Lengths) -> list[Float64Array]:
    """Sequence sums near +5,000 and -5,000."""
    signs = [(-1) ** i for i in range(len(lengths))]
    return [sign * 5_000 / n + rng.normal(0, 0.1, n) for sign, n in zip(signs, lengths, strict=True)]


SPREADS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 5.0)

FAMILIES: dict[str, Draw] = {f"normal {spread:g}": normal(spread) for spread in SPREADS} | {
    "student-t 2": student_t2,
    "pareto 1.1": pareto,
    "log-normal 2": log_normal,
    "30 % zeros": many_zeros,
    "offset": offset,
    "bias over T": bias_over_length,
    "all equal": all_equal,
    "all zero": all_zero,
    "+-1e6": million,
    "+-5,000 sums": five_thousand,
}
