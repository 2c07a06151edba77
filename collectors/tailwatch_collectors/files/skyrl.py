"""SkyRL: batch dumps (`trainer.dump_data_batch`), `dumped_data/global_step_{N}_training_input.pkl`.

A pickle of one `TrainingInputBatch`, read without SkyRL and without running what a pickle can name: only the batch
and plain values are rebuilt, anything else is refused. Arrays are [B, R], right-aligned: response tokens end at the
last column, whose index t belongs to `sequences[:, -R + t]`. `action_log_probs` is None where the forward pass was
skipped, and then there is nothing to compare. Padding rows at the end are counted in the metadata.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.errors import BatchError, FieldError
from tailwatch_collectors.files.format import Item, Problem, State, Unit, last_byte, numbered, torch_load
from tailwatch_collectors.types import Phase

_NAME = re.compile(r"global_step_(\d+)_training_input\.pkl")
_NEEDED = ("rollout_logprobs", "action_log_probs", "loss_mask", "response_mask")
_BATCHES = {"TensorBatch", "TrainingInputBatch"}


class SkyRl:
    """Batch dumps of SkyRL."""

    name = "skyrl"
    phase: Phase = "rollout"
    settles = True
    marker: str | None = None

    def find(self, root: Path) -> list[Unit]:
        """One unit per file in `root` or its `dumped_data`."""
        home = root / "dumped_data" if (root / "dumped_data").is_dir() else root
        return [Unit(step=step, paths=(path,)) for step, path in numbered(home, "global_step_*.pkl", _number)]

    def state(self, unit: Unit) -> State:
        """It looks whole where it ends as a pickle does."""
        return "looks_whole" if last_byte(unit.paths[0]) == pickle.STOP else "partial"

    def read(self, unit: Unit) -> Iterator[Item]:
        """Row by row."""
        path = unit.paths[0]
        try:
            tensors, metadata = load(path.read_bytes())
        except ImportError:
            yield Problem(path=path, kind="unusable", reason="holds bfloat16 tensors, which are read with torch")
            return
        except Exception as error:  # noqa: BLE001  # unpickling raises whatever a broken file leads it to
            reason = f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]:.160}"
            yield Problem(path=path, kind="corrupt", reason=reason)
            return
        absent = [name for name in _NEEDED if tensors.get(name) is None]
        if absent:
            yield Problem(path=path, kind="no_logprobs", reason=f"the batch has no {', '.join(absent)}")
            return
        try:
            yield from sequences(tensors, metadata)
        except (BatchError, TypeError, ValueError, IndexError) as error:
            yield Problem(path=path, kind="unusable", reason=f"{error!s:.200}")


FORMAT = SkyRl


def sequences(tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Row]:
    """A batch as rows, padding left out.

    Raises:
        BatchError: arrays of unequal shape.
    """
    mask_BR, response_BR = rows.flags(tensors["loss_mask"]), rows.flags(tensors["response_mask"])
    for name in _NEEDED:
        if tensors[name].shape != mask_BR.shape:
            reason = f"has shape {tensors[name].shape}, loss_mask has {mask_BR.shape}"
            raise BatchError(FieldError(column=name, reason=reason))
    tokens_BS, advantages_BR = tensors.get("sequences"), tensors.get("advantages")
    prompts_B = _prompts(metadata.get("policy_prompt_boundaries"), len(mask_BR))
    found = []
    for b in range(len(mask_BR) - int(metadata.get("pad_size") or 0)):
        row = rows.response(
            infer_logprobs=tensors["rollout_logprobs"][b],
            train_logprobs=tensors["action_log_probs"][b],
            mask=mask_BR[b] & response_BR[b],
            token_ids=None if tokens_BS is None else rows.integers(tokens_BS[b, -mask_BR.shape[1] :]),
            advantage=None if advantages_BR is None else rows.floats(advantages_BR[b]),
            prompt_id=None if prompts_B is None else str(prompts_B[b]),
            seq_id=str(b),
        )
        if row is not None:
            found.append(row)
    return found


def load(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a pickled batch as arrays, and its metadata.

    Raises:
        pickle.UnpicklingError: no pickle of a batch, or it names something that is not rebuilt here.
        ImportError: it holds bfloat16 tensors and torch is not installed.
    """
    batch = _Unpickler(io.BytesIO(data)).load()
    if not isinstance(batch, _Batch):
        raise pickle.UnpicklingError(f"holds a {type(batch).__name__}, expected a TrainingInputBatch")
    values = batch.state.get("batch_dict", {})
    tensors = {name: _tensor(value) for name, value in values.items() if isinstance(value, dict)}
    return {name: value for name, value in tensors.items() if value is not None}, batch.state.get("metadata") or {}


class _Batch:
    """What is rebuilt of a batch: its state."""

    def __init__(self, _kind: Any, state: dict[str, Any]) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Rebuilds a batch and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if module.endswith(".training_batch"):
            if name == "_rebuild_tensor_batch":
                return _Batch
            if name in _BATCHES:
                return dict
        if (module, name) == ("torch", "device"):
            return str
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        raise pickle.UnpicklingError(f"names {module}.{name}, which is not rebuilt here")


def _scalar(dtype: Any, data: bytes) -> Any:
    """A numpy number in the metadata."""
    return np.frombuffer(data, np.dtype(dtype))[0]


_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "dtype"): np.dtype,
}


def _tensor(value: Mapping[str, Any]) -> NDArray[Any] | None:
    """One serialised tensor; None for a list of tensors (images), which are not needed."""
    if value.get("format") == "tensor_list":
        return None
    if value.get("format") == "torch":
        return rows.floats(torch_load(io.BytesIO(value["data"])))
    array: NDArray[Any] = np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
    return array


def _prompts(boundaries: Sequence[tuple[int, int]] | None, rows_B: int) -> list[int] | None:
    """[B] number of each row's prompt, from the [start, end) of every prompt; None where they are not known."""
    if boundaries is None:
        return None
    prompts = [index for index, (start, end) in enumerate(boundaries) for _ in range(start, end)]
    return prompts + [len(boundaries)] * (rows_B - len(prompts))


def _number(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None
