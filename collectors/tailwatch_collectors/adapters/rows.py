"""Rows: one sequence as a dict of columns, and a list of them as the keywords of `Collector.record`.

Shared by the adapters and the file formats whose frameworks hold whole sequences (prompt, response, tool output) in
one array. A row is cut to its response: from the first token that counts to the last, so that index t is response
token t and what another speaker wrote in between stays, masked out.

Shapes: S tokens of a whole sequence, T of its response.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.errors import BatchError, FieldError

Row = dict[str, Any]
"""Columns of one sequence: [T] arrays, and numbers or strings that hold for all of it."""


def floats(value: Any) -> NDArray[np.float32]:
    """A tensor on any device, an array or a JSON list as float32; null becomes NaN.

    Raises:
        BatchError: the value holds something else than numbers.
    """
    return _array(value, np.float32)


def integers(value: Any) -> NDArray[np.int64]:
    """As `floats`, as int64.

    Raises:
        BatchError: the value holds something else than integers.
    """
    return _array(value, np.int64)


def flags(value: Any) -> NDArray[np.bool_]:
    """As `floats`, as booleans: masks come as bool, int and float.

    Raises:
        BatchError: the value holds something else than numbers.
    """
    return _array(value, np.float32) > 0


def _array(value: Any, dtype: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):  # torch, which is never imported for this
        value = value.detach()
        # bfloat16 has no numpy type.
        value = (value.float() if value.is_floating_point() else value).cpu().numpy()
    try:
        with np.errstate(over="ignore"):
            return np.array(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        reason = f"cannot be read as {np.dtype(dtype).name}: {error!s:.200}"
        raise BatchError(FieldError(reason=reason)) from error


def response(*, infer_logprobs: Any, train_logprobs: Any, mask: Any, **columns: Any) -> Row | None:
    """Cut a whole sequence to its response; None where no token counts.

    Args:
        infer_logprobs: [S] what the inference engine reported.
        train_logprobs: [S] the same tokens under the training engine.
        mask: [S] true where the policy sampled the token.
        **columns: [S] arrays, cut alike; numbers and strings, kept; None, left out.

    Raises:
        BatchError: arrays of unequal length; names the column and both lengths.
    """
    mask_S = flags(mask).reshape(-1)
    given: dict[str, Any] = {"infer_logprobs": floats(infer_logprobs), "train_logprobs": floats(train_logprobs)}
    given |= {name: value for name, value in columns.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, np.ndarray) and value.shape != mask_S.shape:
            reason = f"has shape {value.shape}, the mask has {mask_S.shape}"
            raise BatchError(FieldError(column=name, reason=reason))
    counted = np.flatnonzero(mask_S)
    if len(counted) == 0:
        return None
    cut = slice(int(counted[0]), int(counted[-1]) + 1)
    row = {name: value[cut] if isinstance(value, np.ndarray) else value for name, value in given.items()}
    row["mask"] = mask_S[cut]
    return row


def turns(mask: NDArray[np.bool_]) -> NDArray[np.int16]:
    """[T] turn of each token, from 0: a new one begins where sampled tokens follow others.

    Tokens of other speakers belong to the turn before them.
    """
    starts = mask & ~np.concatenate(([False], mask[:-1]))
    turns_T: NDArray[np.int16] = np.maximum(np.cumsum(starts) - 1, 0).astype(np.int16)
    return turns_T


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as keywords of `Collector.record`: one list per column.

    A `turn` column is added where any row has several turns and none was given.

    Raises:
        BatchError: a column is there in some rows only; names it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    for index, row in enumerate(rows):
        missing = [name for name in names if name not in row]
        if missing:
            raise BatchError(FieldError(row=index, column=missing[0], reason="is missing; other rows have it"))
    found = {name: [row[name] for row in rows] for name in names}
    if "mask" in found and "turn" not in found:
        turn = [turns(mask) for mask in found["mask"]]
        if any(len(row) and row[-1] > 0 for row in turn):
            found["turn"] = turn
    return found or {"infer_logprobs": [], "train_logprobs": []}


def tokens(rows: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of all rows, masked ones included."""
    return sum(len(row["infer_logprobs"]) for row in rows)


def placeholder(train_logprobs: NDArray[np.float32], infer_logprobs: NDArray[np.float32]) -> bool:
    """True where the train log-probs are the zeros of a forward pass that was skipped, not log-probs."""
    return bool(len(train_logprobs) and not train_logprobs.any() and infer_logprobs.any())


def number(value: Any) -> float | None:
    """A number from a tensor of one, an array of one, a list of one or a number; None for anything else and NaN."""
    if hasattr(value, "item"):
        value = value.item() if getattr(value, "size", None) == 1 or _count(value) == 1 else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _count(value: Any) -> int:
    return int(value.numel()) if hasattr(value, "numel") else int(np.size(value))
