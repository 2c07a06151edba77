"""The compiled pass against the numpy backend and the reference, on ordinary data and on what should not come."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import fused, schema, summarise
from tailwatch_collectors.types import BatchMeta
from tests.oracles.backends import assert_agree
from tests.oracles.families import FAMILIES, batch_of

LENGTHS = [1, 1, 700, 3, 33_000, 2, 5_000, 63, 64, 65, 4_096, 4_097]


def rich(family: str, seed: int) -> Batch:
    """A batch with every column."""
    rng = np.random.default_rng(seed)
    n, sequences = sum(LENGTHS), len(LENGTHS)
    return batch_of(
        FAMILIES[family](rng, LENGTHS),
        rng,
        meta=BatchMeta(step=1, train_version=30, rank=3),
        advantage=rng.choice([-1.0, 0, 1, np.nan], n),
        infer_version=np.sort(rng.integers(0, 40, n)).astype(np.int32),
        turn=np.sort(rng.integers(-1, 9, n)).astype(np.int16),
        source=[f"s{row % 5}" for row in range(sequences)],
        replica=[f"r{row % 3}" for row in range(sequences)],
        token_ids=np.arange(n),
        train_token_ids=np.where(rng.random(n) < 0.1, 0, np.arange(n)),
        entropy=rng.exponential(size=n),
        infer_entropy=np.where(rng.random(n) < 0.1, np.nan, rng.exponential(size=n)),
        sum_p2_other=rng.random(n) * 0.1,
        reward=rng.normal(size=sequences),
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_column_as_numpy_has_it(family: str) -> None:
    batch = rich(family, 1)
    assert_agree(summarise(batch, backend="numba", sample=True), summarise(batch, backend="numpy", sample=True))


@pytest.mark.parametrize("family", ["student-t 2", "+-1e6", "30 % zeros"])
def test_masks_holes_and_columns_per_sequence(family: str) -> None:
    rng = np.random.default_rng(2)
    batch = rich(family, 2)
    infer = batch.infer_logprobs_N.copy()
    for value in (np.nan, np.inf, -np.inf, 0.5, 5e-4, 0.0, -0.0):
        infer[rng.random(batch.tokens) < 0.01] = value
    infer[LENGTHS[0] + LENGTHS[1] :][:700] = np.nan  # a whole sequence
    batch = replace(
        batch,
        infer_logprobs_N=infer,
        mask_N=rng.random(batch.tokens) < 0.7,
        mask_post_N=rng.random(batch.tokens) < 0.5,
        advantage_N=None,
        advantage_B=rng.choice([-1, 0, 1, np.nan], len(LENGTHS)).astype(np.float32),
        infer_version_N=None,
        infer_version_B=rng.integers(0, 33, len(LENGTHS)),
    )
    assert_agree(summarise(batch, backend="numba"), summarise(batch, backend="numpy"))


def of(infer: Any, train: Any, lengths: list[int], **columns: Any) -> Batch:
    offsets = np.cumsum([0, *lengths])
    meta = columns.pop("meta", BatchMeta(step=1))
    return Batch.from_arrays(meta, infer_logprobs=infer, train_logprobs=train, cu_seqlens=offsets, **columns)


def everything_hostile() -> np.ndarray:
    tiny = np.float32(1e-42)  # a denormal
    odd = [0.0, -0.0, -tiny, -1e-30, -1e6, -3e38, -1.0, np.nan, np.inf, -np.inf, 1e-4, 0.5, -150.0, -150.5, -0.5]
    return np.array(odd, np.float32)


HOSTILE = everything_hostile()
BAD: dict[str, Batch] = {
    "one token": of([-1.0], [-1.5], [1]),
    "no token": of(np.empty(0), np.empty(0), []),
    "empty sequences": of([-1.0], [-1.0], [0, 1, 0, 0]),
    "all masked": of([-1.0, -2.0], [-1.0, -1.0], [2], mask=[False, False]),
    "every pair of hostile values": of(
        np.repeat(HOSTILE, len(HOSTILE)), np.tile(HOSTILE, len(HOSTILE)), [100, len(HOSTILE) ** 2 - 100]
    ),
    "d +-1e6": of(np.tile([-1e6, 0.0], 3_000), np.tile([0.0, -1e6], 3_000), [6_000]),
    "all d equal": of(np.full(9_000, -1.0), np.full(9_000, -1.25), [9_000]),
    "all d zero": of(np.full(9_000, -1.0), np.full(9_000, -1.0), [4_000, 5_000]),
    "T = 32k": of(np.full(32_768, -0.5), np.linspace(-2, 0, 32_768), [32_768]),
    "lags negative and 1e9": of(
        np.full(6, -1.0),
        np.full(6, -2.0),
        [6],
        meta=BatchMeta(step=1, train_version=10**9),
        infer_version=np.array([0, 10**9, 10**9 + 5, 10**9 - 16, 10**9 - 17, 2**31 - 1], np.int32),
    ),
    "lags of 2^53 per sequence": Batch.from_arrays(
        BatchMeta(step=1, train_version=2**53 - 1),
        infer_logprobs=[[-1.0], [-2.0, -3.0]],
        train_logprobs=[[-1.0], [-1.0, -1.0]],
        infer_version=[0, 2**53 - 1],
    ),
    "10,000 sources": of(
        np.full(10_000, -1.0), np.full(10_000, -1.1), [1] * 10_000, source=[f"source {i}" for i in range(10_000)]
    ),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input(name: str) -> None:
    batch = BAD[name]
    summary = summarise(batch, backend="numba", sample=True)
    assert_agree(summary, summarise(batch, backend="numpy", sample=True))
    if batch.tokens < 1_000:
        assert_agree(summary, summarise(batch, backend="reference", sample=True))


def test_arrays_that_may_not_be_written_and_odd_strides() -> None:
    batch = rich("student-t 2", 3)
    expected = summarise(batch, backend="numba")
    frozen = {}
    for name in Batch.__slots__:
        values = getattr(batch, name)
        if isinstance(values, np.ndarray):
            values = values.copy()
            values.flags.writeable = False
            frozen[name] = values
    spread = np.repeat(batch.infer_logprobs_N, 2)[::2]
    assert not spread.flags.c_contiguous
    for other in (replace(batch, **frozen), replace(batch, infer_logprobs_N=spread)):
        assert_agree(summarise(other, backend="numba"), expected)


def test_levels_leave_out_what_is_above_them() -> None:
    from tailwatch_collectors.summary.fused import layout
    from tailwatch_collectors.summary.fused.summarise import parts

    batch = rich("student-t 2", 4)
    whole = parts(batch)
    plain, binned = (parts(batch, level=level) for level in (layout.UNSLICED, layout.WITH_BINS))
    for part in (plain, binned):
        np.testing.assert_array_equal(part.sign_grid, whole.sign_grid)
        assert part.scaled.mantissa.tobytes() == whole.scaled.mantissa.tobytes()
        assert not part.buckets["position"].octaves.any()
    assert not plain.bin_grid.any()
    np.testing.assert_array_equal(binned.bin_grid, whole.bin_grid)


def test_edges_of_the_probability_bins_are_exact() -> None:
    edges = schema.PROBABILITY_LOG_EDGES
    around = np.concatenate([[np.nextafter(e, np.float32(-np.inf)), e, np.nextafter(e, np.float32(0))] for e in edges])
    infer = np.concatenate((around, [0.0, -0.0, 1e-4, -1e-45, -3e38])).astype(np.float32)
    batch = of(infer, infer, [len(infer)])
    counts = summarise(batch, backend="numba").bins.counts_RC[:, 0]
    expected = np.bincount(np.searchsorted(edges, infer, side="right"), minlength=schema.PROBABILITY_BINS)
    assert counts.tolist() == expected.tolist()


def test_every_source_that_compiled_code_depends_on_is_in_its_key() -> None:
    from tailwatch_collectors.summary.fused import jit

    compiled = Path(fused.__file__).parent
    ours = "tailwatch_collectors.summary."
    imported = {
        node.module.removeprefix(ours)
        for source in ("arithmetic", "buckets", "chunk", "jit", "layout", "stages")
        for node in ast.walk(ast.parse((compiled / f"{source}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(ours)
    }
    outside = {name for name in imported if not name.startswith("fused")}
    assert outside <= {module.__name__.removeprefix(ours) for module in jit.DEPENDENCIES}
