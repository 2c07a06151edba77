"""Batch: the ragged per-token arrays of one step on one rank.

Whatever layout the trainer holds (padded with a mask, packed with cu_seqlens, lists of sequences; torch on any
device and in any precision, or numpy), it becomes one flat float32 array per column and one offsets array, once, on
entry. Index t of a sequence is response token t: the prompt is left out by the caller.

Shapes: B sequences, T padded tokens, N = offsets_B1[-1] tokens laid end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.errors import BatchError, FieldError
from tailwatch_collectors.types import (
    MAX_NAME_LENGTH,
    MAX_PART,
    MAX_RANK,
    MAX_STEP,
    PHASES,
    BatchMeta,
)

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
Int16Array = NDArray[np.int16]
BoolArray = NDArray[np.bool_]

TokenColumn = Literal[
    "infer_logprobs",
    "train_logprobs",
    "mask",
    "mask_post",
    "token_ids",
    "train_token_ids",
    "entropy",
    "infer_entropy",
    "sum_p2_other",
    "advantage",
    "infer_version",
    "turn",
]

TOKEN_DTYPES: dict[str, Any] = {
    "infer_logprobs": np.float32,
    "train_logprobs": np.float32,
    "mask": np.bool_,
    "mask_post": np.bool_,
    "token_ids": np.int32,
    "train_token_ids": np.int32,
    "entropy": np.float32,
    "infer_entropy": np.float32,
    "sum_p2_other": np.float32,
    "advantage": np.float32,
    "infer_version": np.int32,
    "turn": np.int16,
}
"""Columns with one value per token, and their type. `advantage` and `infer_version` may be per sequence instead."""

SEQUENCE_DTYPES: dict[str, Any] = {"advantage": np.float32, "reward": np.float32, "infer_version": np.int64}
"""Numeric columns with one value per sequence."""

STRING_COLUMNS = ("seq_id", "prompt_id", "source", "replica", "text")
"""Columns with one string per sequence."""

_STRING_OVERHEAD = 56
"""Bytes of an empty string in CPython."""


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The bits of bfloat16 values, for which numpy has no type."""

    bits: NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.bits.shape

    def float32(self) -> Float32Array:
        """The values: bfloat16 is the upper half of float32."""
        values: Float32Array = (self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Ragged per-token arrays of one step on one rank. Absent columns are None, never filled in."""

    meta: BatchMeta
    """Step, rank, phase, ... of the batch."""
    offsets_B1: Int64Array
    """[B+1] start of every sequence in the flat arrays, and their end."""
    infer_logprobs_N: Float32Array
    """[N] log-prob of each sampled token as the inference engine reported it; NaN where missing."""
    train_logprobs_N: Float32Array
    """[N] log-prob of the same token under the training engine; NaN where missing."""
    mask_N: BoolArray | None = None
    """[N] True where the token counts, before any rejection; None: all count."""
    mask_post_N: BoolArray | None = None
    """[N] the subset left after rejection or masking by a correction."""
    token_ids_N: Int32Array | None = None
    """[N] sampled token ids, as the inference engine named them."""
    train_token_ids_N: Int32Array | None = None
    """[N] ids of the tokens the training engine scored, where it says so: the two must agree."""
    entropy_N: Float32Array | None = None
    """[N] entropy of the training policy, nats."""
    infer_entropy_N: Float32Array | None = None
    """[N] entropy of the inference policy, nats."""
    sum_p2_other_N: Float32Array | None = None
    """[N] sum of squared probabilities of all tokens but the sampled one, training policy."""
    advantage_N: Float32Array | None = None
    """[N] advantage per token, where it is not per sequence."""
    infer_version_N: Int32Array | None = None
    """[N] version of the weights that sampled each token, where it is not per sequence."""
    turn_N: Int16Array | None = None
    """[N] conversation turn of each token."""
    advantage_B: Float32Array | None = None
    """[B] advantage per sequence."""
    reward_B: Float32Array | None = None
    """[B] reward per sequence."""
    infer_version_B: Int64Array | None = None
    """[B] version of the weights that sampled each sequence."""
    seq_id: tuple[str, ...] | None = None
    """[B] sequence names."""
    prompt_id: tuple[str, ...] | None = None
    """[B] prompt (group) names."""
    source: tuple[str, ...] | None = None
    """[B] environment or data source."""
    replica: tuple[str, ...] | None = None
    """[B] inference engine replica."""
    text: tuple[str, ...] | None = None
    """[B] decoded response; off unless both sides opt in."""

    @property
    def sequences(self) -> int:
        """B, the number of sequences."""
        return len(self.offsets_B1) - 1

    @property
    def tokens(self) -> int:
        """N, the number of tokens, masked ones included."""
        return int(self.offsets_B1[-1])

    @property
    def lengths_B(self) -> Int64Array:
        """[B] tokens per sequence, masked ones included."""
        return np.diff(self.offsets_B1)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        total = 0
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                total += sum(map(len, value)) + _STRING_OVERHEAD * len(value)
            elif isinstance(value, np.ndarray):
                total += value.nbytes
        return total

    def check(self) -> list[FieldError]:
        """Everything that is wrong with this batch; empty when it is sound."""
        found = check_meta(self.meta)
        offsets = self.offsets_B1
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            return [*found, FieldError(column="offsets", reason="must start at 0 and never fall")]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name in {"meta", "offsets_B1"}:
                continue
            expected = self.tokens if field.name.endswith("_N") else self.sequences
            if len(value) != expected:
                name = field.name.removesuffix("_N").removesuffix("_B")
                found.append(FieldError(column=name, reason=f"has {len(value)} values, expected {expected}"))
        for name in STRING_COLUMNS:
            for row, value in enumerate(getattr(self, name) or ()):
                reason = None
                if len(value) > MAX_NAME_LENGTH and name != "text":
                    reason = f"is {len(value)} characters long, limit {MAX_NAME_LENGTH}"
                elif not storable(value):
                    reason = f"{value!r:.80} holds NUL or half a surrogate pair"
                if reason is not None:
                    found.append(FieldError(row=row, column=name, reason=reason))
                    break
        return found

    @classmethod
    def from_arrays(
        cls,
        meta: BatchMeta,
        *,
        infer_logprobs: Any,
        train_logprobs: Any,
        cu_seqlens: Any = None,
        lengths: Any = None,
        padding: Literal["right", "left"] = "right",
        owned: bool = False,
        **columns: Any,
    ) -> Batch:
        """Build a batch from whatever layout the arrays have.

        Args:
            meta: what the batch is about.
            infer_logprobs: [B, T] padded, [N] packed (with `cu_seqlens`), or a list of B sequences.
            train_logprobs: same layout.
            cu_seqlens: [B+1] boundaries of packed arrays.
            lengths: [B] response lengths of padded arrays; default: up to the outermost True of `mask`, else T.
            padding: side on which padded arrays are padded.
            owned: nobody will change the arrays, so the batch may share their memory.
            **columns: the optional columns of the wire record, per token in the same layout or per sequence [B].

        Raises:
            BatchError: the arrays do not form a batch; names the column and both lengths.
        """
        unknown = sorted(set(columns) - set(TOKEN_DTYPES) - set(SEQUENCE_DTYPES) - set(STRING_COLUMNS))
        if unknown:
            raise BatchError(*(FieldError(column=name, reason="is not a column of schema 1") for name in unknown))
        given = {"infer_logprobs": infer_logprobs, "train_logprobs": train_logprobs}
        given |= {name: value for name, value in columns.items() if value is not None}
        if cu_seqlens is not None:
            layout: _Layout = _Packed.of(cu_seqlens, owned=owned)
        elif isinstance(infer_logprobs, Sequence):
            layout = _Lists.of(infer_logprobs)
        else:
            infer = as_array(infer_logprobs, "infer_logprobs", np.float32)
            if infer.ndim == 1:
                layout = _Packed(np.array([0, len(infer)], np.int64), owned)
            elif infer.ndim == 2:
                mask = given.get("mask")
                mask_BT = None if mask is None else as_array(mask, "mask", np.bool_)
                layout = _Padded.of(infer.shape, mask_BT, lengths, padding)
            else:
                reason = f"has {infer.ndim} dimensions, expected [B, T] or [N]"
                raise BatchError(FieldError(column="infer_logprobs", reason=reason))
        built: dict[str, Any] = {"meta": meta, "offsets_B1": layout.offsets_B1()}
        for name, value in given.items():
            built |= _column(name, value, layout)
        batch = cls(**built)
        errors = batch.check()
        if errors:
            raise BatchError(*errors)
        return batch


def check_meta(meta: BatchMeta) -> list[FieldError]:
    """Everything that is wrong with the metadata of a batch; empty when it is sound."""
    found: list[FieldError] = []
    bounds: list[tuple[str, int, int]] = [
        ("step", 0, MAX_STEP),
        ("update_index", 0, MAX_STEP),
        ("rank", 0, MAX_RANK),
        ("part", 0, MAX_PART),
        ("world_size", 1, MAX_RANK + 1),
        ("attempt", 1, MAX_STEP),
        ("train_version", 0, MAX_STEP),
    ]
    for name, low, high in bounds:
        value = getattr(meta, name)
        if value is None and name in {"world_size", "attempt", "train_version"}:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            found.append(FieldError(column=name, reason=f"{value!r:.80} is not an integer"))
        elif not low <= value <= high:
            found.append(FieldError(column=name, reason=f"{value} is outside {low} .. {high}"))
    if not found and meta.world_size is not None and meta.rank >= meta.world_size:
        reason = f"{meta.rank} is not below world_size {meta.world_size}"
        found.append(FieldError(column="rank", reason=reason))
    if meta.phase not in PHASES:
        found.append(FieldError(column="phase", reason=f"{meta.phase!r:.80} is not one of {', '.join(PHASES)}"))
    for name in ("stream", "session", "framework", "project", "run"):
        value = getattr(meta, name)
        if value is None and name != "stream":
            continue
        if not isinstance(value, str) or not value or len(value) > MAX_NAME_LENGTH or not storable(value):
            reason = f"{value!r:.80} is not a name of 1 to {MAX_NAME_LENGTH} characters"
            found.append(FieldError(column=name, reason=reason))
    if meta.recorded_at is not None and not _is_finite_number(meta.recorded_at):
        found.append(FieldError(column="recorded_at", reason=f"{meta.recorded_at!r:.80} is not a finite number"))
    return found


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def storable(text: str) -> bool:
    """Whether a text survives UTF-8 and a database: no lone surrogates, no NUL."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def as_array(value: Any, name: str, dtype: Any) -> NDArray[Any]:
    """Turn a torch tensor (any device, any precision) or anything numpy accepts into an array of `dtype`.

    Raises:
        BatchError: the values cannot be that type; names the column.
    """
    if isinstance(value, BFloat16):
        value = value.float32()
    elif type(value).__module__.partition(".")[0] == "torch":
        # bfloat16 has no numpy type; the cast runs where the tensor lives, before the copy to the host.
        value = value.detach()
        if value.is_floating_point():
            value = value.float()
        value = value.cpu().numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"holds {array.dtype}")
        if array.dtype == dtype:
            # Without errstate: a signal handler that records inside one can crash CPython's context variables.
            return array
        if np.dtype(dtype).kind in "iu":
            _check_integers(array, np.iinfo(dtype))
        # A float64 beyond float32 becomes inf and is counted as non-finite: no warning in the trainer's log.
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype, copy=False)
    except (TypeError, ValueError) as error:
        reason = f"cannot be read as {np.dtype(dtype).name}: {error}"
        raise BatchError(FieldError(column=name, reason=reason)) from error


def _length(value: Any, column: str, *, row: int | None = None) -> int:
    """len(value), or a BatchError where a list of arrays was expected and a number came."""
    try:
        return len(value)
    except TypeError as error:
        reason = f"{value!r:.80} is not a sequence; lists hold one array per sequence"
        raise BatchError(FieldError(row=row, column=column, reason=reason)) from error


def _check_integers(array: NDArray[Any], limits: np.iinfo[Any]) -> None:
    """Refuse what a cast to an integer type would truncate or wrap in silence."""
    if array.size == 0 or array.dtype.kind == "b":
        return
    if array.dtype.kind == "f" and not (array == np.trunc(array)).all():
        raise TypeError("holds fractional values")
    lowest, highest = array.min().item(), array.max().item()
    if lowest < limits.min or highest > limits.max:
        raise TypeError(f"holds {lowest if lowest < limits.min else highest}, outside {limits.min} .. {limits.max}")


class _Layout:
    """How flat arrays are cut out of what the trainer holds."""

    def offsets_B1(self) -> Int64Array:
        raise NotImplementedError

    def flatten(self, value: Any, name: str, dtype: Any) -> NDArray[Any] | None:
        """The flat [N] array; None where `value` has one entry per sequence instead."""
        raise NotImplementedError


@dataclass(slots=True)
class _Packed(_Layout):
    cu_seqlens_B1: NDArray[Any]
    owned: bool

    @classmethod
    def of(cls, cu_seqlens: Any, *, owned: bool) -> _Packed:
        """From [B+1] boundaries."""
        cu_seqlens_B1 = as_array(cu_seqlens, "cu_seqlens", np.int64)
        if cu_seqlens_B1.ndim != 1 or len(cu_seqlens_B1) == 0:
            reason = f"has shape {cu_seqlens_B1.shape}, expected [B+1] with B >= 0"
            raise BatchError(FieldError(column="cu_seqlens", reason=reason))
        return cls(cu_seqlens_B1, owned)

    def offsets_B1(self) -> Int64Array:
        return self.cu_seqlens_B1.astype(np.int64)

    def flatten(self, value: Any, name: str, dtype: Any) -> NDArray[Any] | None:
        array = as_array(value, name, dtype)
        tokens = int(self.cu_seqlens_B1[-1])
        if array.ndim == 2 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 1:
            raise BatchError(FieldError(column=name, reason=f"has shape {array.shape}, expected [{tokens}]"))
        if name in SEQUENCE_DTYPES and len(array) != tokens and len(array) == len(self.cu_seqlens_B1) - 1:
            return None
        return np.ascontiguousarray(array) if self.owned else array.copy()


@dataclass(slots=True)
class _Padded(_Layout):
    shape: tuple[int, int]
    starts_B: Int64Array
    lengths_B: Int64Array

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        mask_BT: NDArray[Any] | None,
        lengths: Any,
        padding: Literal["right", "left"],
    ) -> _Padded:
        B, T = shape
        if lengths is not None:
            lengths_B = as_array(lengths, "lengths", np.int64)
            if lengths_B.shape != (B,) or (lengths_B < 0).any() or (lengths_B > T).any():
                reason = f"must be [{B}] values in 0 .. {T}"
                raise BatchError(FieldError(column="lengths", reason=reason))
        elif mask_BT is not None:
            if mask_BT.shape != (B, T):
                reason = f"has shape {mask_BT.shape}, expected {(B, T)}"
                raise BatchError(FieldError(column="mask", reason=reason))
            outermost = mask_BT[:, ::-1] if padding == "right" else mask_BT
            lengths_B = (
                np.where(mask_BT.any(1), T - outermost.argmax(1), 0).astype(np.int64) if T else np.zeros(B, np.int64)
            )
        else:
            lengths_B = np.full(B, T, np.int64)
        starts_B = T - lengths_B if padding == "left" else np.zeros(B, np.int64)
        return cls((B, T), starts_B, lengths_B)

    def offsets_B1(self) -> Int64Array:
        return np.concatenate(([0], np.cumsum(self.lengths_B))).astype(np.int64)

    def flatten(self, value: Any, name: str, dtype: Any) -> NDArray[Any] | None:
        array_BT = as_array(value, name, dtype)
        B, T = self.shape
        if name in SEQUENCE_DTYPES and array_BT.shape == (B,):
            return None
        if array_BT.shape != (B, T):
            raise BatchError(FieldError(column=name, reason=f"has shape {array_BT.shape}, expected {(B, T)}"))
        flat_N = np.empty(int(self.lengths_B.sum()), dtype)
        end = 0
        # Row copies: a boolean mask over the padded array costs 25 times as much.
        for row, (start, length) in enumerate(zip(self.starts_B.tolist(), self.lengths_B.tolist(), strict=True)):
            flat_N[end : end + length] = array_BT[row, start : start + length]
            end += length
        return flat_N


@dataclass(slots=True)
class _Lists(_Layout):
    lengths_B: Int64Array

    @classmethod
    def of(cls, rows: Sequence[Any]) -> _Lists:
        """Lengths of the rows; a flat list of numbers is refused."""
        return cls(np.array([_length(value, "infer_logprobs", row=row) for row, value in enumerate(rows)], np.int64))

    def offsets_B1(self) -> Int64Array:
        return np.concatenate(([0], np.cumsum(self.lengths_B))).astype(np.int64)

    def flatten(self, value: Any, name: str, dtype: Any) -> NDArray[Any] | None:
        if _length(value, name) != len(self.lengths_B):
            reason = f"has {len(value)} sequences, expected {len(self.lengths_B)}"
            raise BatchError(FieldError(column=name, reason=reason))
        if name in SEQUENCE_DTYPES and all(np.ndim(row) == 0 for row in value):
            return None
        rows = [as_array(row, name, dtype) for row in value]
        for row, (array, length) in enumerate(zip(rows, self.lengths_B.tolist(), strict=True)):
            if array.shape != (length,):
                reason = f"has shape {array.shape}, expected ({length},)"
                raise BatchError(FieldError(row=row, column=name, reason=reason))
        return np.concatenate(rows).astype(dtype, copy=False) if rows else np.empty(0, dtype)


def _column(name: str, value: Any, layout: _Layout) -> dict[str, Any]:
    """One given column as the field or fields of `Batch` it fills."""
    sequences = len(layout.offsets_B1()) - 1
    if name in STRING_COLUMNS:
        return {name: (value,) * sequences if isinstance(value, str) else tuple(map(str, value))}
    if name in SEQUENCE_DTYPES and not isinstance(value, Sequence) and np.ndim(value) == 0:
        value = np.full(sequences, value)
    if name in TOKEN_DTYPES:
        flat_N = layout.flatten(value, name, TOKEN_DTYPES[name])
        if flat_N is not None:
            return {f"{name}_N": flat_N}
    return {f"{name}_B": as_array(value, name, SEQUENCE_DTYPES[name]).reshape(-1).copy()}
