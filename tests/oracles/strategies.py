"""Hypothesis strategies for batches: any log-probs a trainer may send, and some it must not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

log_probs = (
    st.floats(-20, 0, width=32)
    | st.floats(-(2.0**-10), 0, width=32)
    | st.sampled_from([0.0, -0.0, -1e6, -1.0, 2.0**-11])
    | st.floats(-(2.0**100), 0, width=32)
)
bad_log_probs = log_probs | st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.5])


@st.composite
def sequences(draw: st.DrawFn, values: st.SearchStrategy[float] = log_probs, most: int = 6) -> list[Any]:
    """[(infer, train)] per sequence, float32."""
    pairs = st.lists(st.tuples(values, values), max_size=8)
    rows = draw(st.lists(pairs, max_size=most))
    return [np.array(row, np.float32).reshape(-1, 2) for row in rows]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch with any of the columns that the summary reads."""
    rows = draw(sequences(bad_log_probs))
    lengths = [len(row) for row in rows]
    tokens = sum(lengths)
    columns: dict[str, Any] = {}
    meta: dict[str, Any] = {"step": 1, "rank": draw(st.integers(0, 2)), "part": draw(st.integers(0, 1))}

    def flags() -> NDArray[np.bool_]:
        return np.array(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)), np.bool_)

    if draw(st.booleans()):
        columns["mask"] = flags()
    if draw(st.booleans()):
        columns["mask_post"] = flags()
    if draw(st.booleans()):
        columns["entropy"] = draw(st.lists(st.floats(0, 10, width=32), min_size=tokens, max_size=tokens))
        columns["infer_entropy"] = columns["entropy"][::-1]
    if draw(st.booleans()):
        columns["infer_version"] = draw(st.lists(st.integers(0, 30), min_size=len(rows), max_size=len(rows)))
        meta["train_version"] = 20
    if draw(st.booleans()):
        columns["advantage"] = draw(st.lists(st.floats(-1, 1, width=32), min_size=len(rows), max_size=len(rows)))
        columns["reward"] = columns["advantage"]
    if draw(st.booleans()):
        columns["seq_id"] = draw(
            st.lists(st.text("abc", min_size=1, max_size=2), min_size=len(rows), max_size=len(rows))
        )
        columns["token_ids"] = np.arange(tokens)
        columns["train_token_ids"] = np.where(flags(), columns["token_ids"], 7)
    if draw(st.booleans()):
        names = st.lists(st.text("xyz", min_size=1, max_size=1), min_size=len(rows), max_size=len(rows))
        columns["source"], columns["replica"] = draw(names), draw(names)
    if draw(st.booleans()):
        columns["turn"] = np.sort(draw(st.lists(st.integers(-1, 9), min_size=tokens, max_size=tokens)))
    if draw(st.booleans()):
        p2 = st.floats(0, 0.25, width=32) | st.just(math.nan)
        columns["sum_p2_other"] = draw(st.lists(p2, min_size=tokens, max_size=tokens))
    flat = np.concatenate([np.empty((0, 2), np.float32), *rows])
    return Batch.from_arrays(
        BatchMeta(**meta),
        infer_logprobs=flat[:, 0],
        train_logprobs=flat[:, 1],
        cu_seqlens=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        **{name: _unambiguous(name, value, tokens, len(rows)) for name, value in columns.items()},
    )


def _unambiguous(name: str, value: Any, tokens: int, rows: int) -> Any:
    """As many tokens as sequences: one value each may be meant either way."""
    if tokens == rows and name in {"advantage", "infer_version"}:
        return value[0] if len(value) else None
    return value
