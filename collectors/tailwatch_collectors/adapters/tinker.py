"""tinker-cookbook: the datums of one iteration and the log-probs its training call returned.

Layout: one `Datum` per sequence; index t of `logprobs`, `mask`, `advantages` and of the training log-probs is
`target_tokens[t]`, prompt included, with 0.0 and mask 0 where nothing was sampled. Training happens in a service, so
the loop is plain Python on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector

FUNCTION = "compute_full_batch_metrics_and_get_sampling_client"
"""Coroutine of `tinker_cookbook.rl.train` that is given an iteration's datums and training log-probs."""


def datums(
    data: Sequence[Any],
    training_logprobs: Sequence[Any],
    *,
    metadata: Sequence[Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Datums and their training log-probs as keywords of `Collector.record`.

    Args:
        data: D datums with `loss_fn_inputs` `logprobs`, `mask`, `target_tokens`, and where it is there `advantages`.
        training_logprobs: D arrays, one per datum.
        metadata: what `assemble_training_data` returns beside the datums: `group_idx` names the prompt.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: an input of a datum is missing.
        ValueError: another number of datums than of log-probs.
    """
    about: Sequence[Mapping[str, int]] = metadata if metadata is not None else [{}] * len(data)
    found = (
        _row(datum, train, meta, index)
        for index, (datum, train, meta) in enumerate(zip(data, training_logprobs, about, strict=True))
    )
    return rows.columns([row for row in found if row is not None])


def attach(module: Any, collector: Collector) -> Undo:
    """Record every iteration of `tinker_cookbook.rl.train.main`; the function returned undoes it.

    Args:
        module: `tinker_cookbook.rl.train`.
        collector: connected with `rank=0, world_size=1`.

    Raises:
        AttributeError: the module has no function of that name.
    """

    def record(arguments: Arguments) -> None:
        found = datums(arguments["data_D"], arguments["training_logprobs_D"])
        # It is called with the number of the checkpoint it saves, one above the iteration. The training call returns
        # what its forward pass saw, update by update: the loss's own log-probs.
        collector.record(step=int(arguments["i_batch"]) - 1, phase="update", **found)

    return wrap(module, FUNCTION, guard=collector.guard, before=record)


def _row(datum: Any, train: Any, about: Mapping[str, int], index: int) -> Row | None:
    inputs = {name: _tensor(value) for name, value in datum.loss_fn_inputs.items()}
    advantages = inputs.get("advantages")
    return rows.response(
        infer_logprobs=inputs["logprobs"],
        train_logprobs=_tensor(train),
        mask=inputs["mask"],
        token_ids=rows.integers(inputs["target_tokens"]),
        advantage=None if advantages is None else rows.floats(advantages),
        prompt_id=str(about["group_idx"]) if "group_idx" in about else None,
        seq_id=str(index),
    )


def _tensor(value: Any) -> Any:
    """The values of a `TensorData`, which carries them as a flat list; anything else as it is."""
    plain = isinstance(value, np.ndarray) or hasattr(value, "detach") or not hasattr(value, "data")
    return value if plain else value.data
