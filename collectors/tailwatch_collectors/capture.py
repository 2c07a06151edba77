"""Capture: what `record` does in the trainer's thread, one copy of every column as it is, and nothing else.

Conversion to float32, flattening and checks of values happen later, in the background (`Capture.batch`), from the
copies: bf16 is copied as its bits, padded arrays with their padding, tensors on a CUDA device by a side stream into
pinned memory. Only what costs no pass over the data is checked at once: names, dimensions, shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tailwatch_collectors.arena import Arena, Buffer
from tailwatch_collectors.batch import (
    SEQUENCE_DTYPES,
    STRING_COLUMNS,
    TOKEN_DTYPES,
    Batch,
    BFloat16,
)
from tailwatch_collectors.device import DeviceCopy, Devices
from tailwatch_collectors.errors import BatchError, FieldError
from tailwatch_collectors.types import BatchMeta

COLUMNS = frozenset({*TOKEN_DTYPES, *SEQUENCE_DTYPES, *STRING_COLUMNS})


class Capture:
    """Copies of the arguments of one `record`, to be made a batch of later."""

    __slots__ = ("_arguments", "_batch", "_buffers", "_give", "meta", "nbytes", "sequences")

    def __init__(
        self,
        meta: BatchMeta,
        *,
        batch: Batch | None,
        arguments: dict[str, Any],
        buffers: list[Buffer],
        sequences: int,
        nbytes: int,
        give: Callable[[Buffer], None],
    ) -> None:
        self.meta = meta
        """What the batch is about."""
        self.sequences = sequences
        """B, the number of sequences."""
        self.nbytes = nbytes
        """Size in memory, bytes."""
        self._batch = batch
        self._arguments = arguments
        self._buffers = buffers
        self._give = give

    def batch(self) -> Batch:
        """The batch, converted and checked. It may share memory with the capture: use it before `release`.

        Raises:
            BatchError: the arrays do not form a batch.
        """
        if self._batch is None:
            arguments = {name: _arrived(value) for name, value in self._arguments.items()}
            self._batch = Batch.from_arrays(self.meta, owned=True, **arguments)
        return self._batch

    def release(self) -> None:
        """Give the memory back."""
        self._batch = None
        self._arguments = {}
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._give(buffer)


def capture(meta: BatchMeta, *, arena: Arena, devices: Devices, **arguments: Any) -> Capture:
    """Copy the arguments of `Batch.from_arrays`.

    Raises:
        BatchError: they cannot form a batch, as far as names and shapes tell.
    """
    infer = arguments["infer_logprobs"]
    given = {name: value for name, value in arguments.items() if value is not None}
    unknown = sorted(set(given) - COLUMNS - {"cu_seqlens", "lengths", "padding"})
    if unknown:
        raise BatchError(*(FieldError(column=name, reason="is not a column of schema 1") for name in unknown))
    if isinstance(infer, Sequence):
        if not _on_device(infer):
            return of_batch(Batch.from_arrays(meta, **arguments), give=arena.give)
        given = _joined(given)
    copies: dict[str, Any] = {}
    taken: list[Buffer] = []
    nbytes = 0
    for name, value in given.items():
        copies[name], size = _copy(name, value, arena, devices, taken)
        nbytes += size
    sequences = _check_shapes(copies)
    return Capture(
        meta, batch=None, arguments=copies, buffers=taken, sequences=sequences, nbytes=nbytes, give=arena.give
    )


def of_batch(batch: Batch, *, give: Callable[[Buffer], None]) -> Capture:
    """A capture of what is a batch already."""
    return Capture(
        batch.meta,
        batch=batch,
        arguments={},
        buffers=[],
        sequences=batch.sequences,
        nbytes=batch.nbytes,
        give=give,
    )


def _check_shapes(copies: dict[str, Any]) -> int:
    """B, from the shapes alone."""
    infer, train = _shape(copies, "infer_logprobs"), _shape(copies, "train_logprobs")
    if len(infer) not in {1, 2}:
        raise BatchError(FieldError(column="infer_logprobs", reason=f"has shape {infer}, expected [B, T] or [N]"))
    if train != infer:
        raise BatchError(FieldError(column="train_logprobs", reason=f"has shape {train}, expected {infer}"))
    if "cu_seqlens" in copies:
        boundaries = _shape(copies, "cu_seqlens")
        return max(boundaries[0] - 1, 0) if len(boundaries) == 1 else 0
    return infer[0] if len(infer) == 2 else 1


def _shape(copies: dict[str, Any], name: str) -> tuple[int, ...]:
    shape = getattr(copies.get(name), "shape", None)
    if shape is None:
        raise BatchError(FieldError(column=name, reason="is missing, or no array"))
    return tuple(map(int, shape))


def _copy(name: str, value: Any, arena: Arena, devices: Devices, taken: list[Buffer]) -> tuple[Any, int]:
    """A copy that nobody else can change, and its size in bytes."""
    if name in STRING_COLUMNS:
        texts = value if isinstance(value, str) else tuple(map(str, value))
        return texts, sum(map(len, texts))
    if isinstance(value, str | int | float):  # a scalar column, `padding`
        return value, 0
    bits = False
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type == "cuda":
            copied = devices.copy(value, torch)
            return copied, copied.nbytes
        bits = value.dtype == torch.bfloat16
        value = _host_array(name, value, torch)
    array = _array(name, value)
    buffer = arena.take(array.nbytes)
    copied = buffer[: array.nbytes].view(array.dtype).reshape(array.shape)
    if array.flags.c_contiguous:
        # Without letting go of the interpreter lock, as numpy would: getting it back from a busy background thread
        # takes milliseconds, a memcpy of a megabyte a tenth of one.
        buffer.data[: array.nbytes] = array.reshape(-1).view(np.uint8).data
    else:
        np.copyto(copied, array)
    taken.append(buffer)
    return (BFloat16(copied.view(np.uint16)) if bits else copied), buffer.nbytes


def _host_array(name: str, tensor: Any, torch: Any) -> Any:
    """A tensor as a numpy array over the same memory, where it is the host's; bfloat16 as int16."""
    try:
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        elif tensor.is_floating_point() and tensor.element_size() == 1:
            tensor = tensor.float()  # fp8: numpy has none
        return tensor.cpu().numpy()
    except (TypeError, RuntimeError) as error:
        raise BatchError(FieldError(column=name, reason=f"cannot be read as an array: {error!s:.200}")) from error


def _array(name: str, value: Any) -> Any:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BatchError(FieldError(column=name, reason=f"cannot be read as an array: {error!s:.200}")) from error
    if array.dtype.kind not in "biuf":
        raise BatchError(FieldError(column=name, reason=f"cannot be read as numbers: holds {array.dtype}"))
    return array


def _arrived(value: Any) -> Any:
    """What was copied from a device, once the copy is through."""
    return value.wait() if isinstance(value, DeviceCopy) else value


def _on_device(rows: Sequence[Any]) -> bool:
    first = rows[0] if len(rows) else None
    device = getattr(first, "device", None)
    return getattr(device, "type", None) == "cuda"


def _joined(given: dict[str, Any]) -> dict[str, Any]:
    """Lists of device tensors as packed tensors: one copy for all rows instead of one wait for each."""
    torch: Any = sys.modules["torch"]
    rows = given["infer_logprobs"]
    lengths = [len(row) for row in rows]
    joined = dict(given)
    for name, value in given.items():
        if isinstance(value, Sequence) and name in TOKEN_DTYPES and len(value) and isinstance(value[0], torch.Tensor):
            wrong = [row for row, one in enumerate(value) if tuple(one.shape) not in {(lengths[row],), ()}]
            if len(value) != len(rows) or wrong:
                row = wrong[0] if wrong else None
                raise BatchError(FieldError(row=row, column=name, reason="differs in length from infer_logprobs"))
            joined[name] = torch.cat([one.detach().reshape(-1) for one in value])
    joined["cu_seqlens"] = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return joined
