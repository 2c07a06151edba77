"""NeMo-RL: the batch that GRPO logs after every step, in process or from its `train_data_step{N}.jsonl`.

Layout: [B, S], prompt and response, right-padded; index i is token i and index 0 is a dummy. `prev_logprobs` are the
training engine's before the first update; zeros where `force_on_policy_ratio` skipped that forward pass, and then
there is nothing to compare. `sample_mask` is 0 for samples that masking took out: those keep `mask` and lose
`mask_post`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector

FILE_NAME = re.compile(r"train_data_step(\d+)\.jsonl")
"""Name of the log of one step; the group is the step."""

_NAMES = {
    "token_ids": ("token_ids", "input_ids"),
    "token_mask": ("token_loss_mask", "token_mask"),
    "sample_mask": ("sample_loss_mask", "sample_mask"),
    # With dynamic sampling `rewards` are those of the unfiltered batch, in another order.
    "reward": ("filtered_rewards", "rewards"),
}


def train_data(data: Mapping[str, Any], *, group_size: int | None = None) -> dict[str, Any]:
    """The batch of one step as keywords of `Collector.record`.

    Args:
        data: what GRPO logs, or `train_data` itself: `generation_logprobs`, `prev_logprobs`, `token_loss_mask` or
            `token_mask`, and where they are there `token_ids` or `input_ids`, `sample_loss_mask`, `advantages`,
            `rewards`, `input_lengths`, `agent_ref`.
        group_size: `num_generations_per_prompt`; names the prompts 0, 1, ... in logged order. None: unnamed.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: the log-probs or the token mask are missing.
    """
    count = len(data["generation_logprobs"])
    found = [sample({name: _at(values, index) for name, values in data.items()}, index=index) for index in range(count)]
    kept = [row for row in found if row is not None]
    for row in kept:
        if group_size:
            row["prompt_id"] = str(int(row["seq_id"]) // group_size)
    return rows.columns(kept)


def sample(values: Mapping[str, Any], *, index: int) -> Row | None:
    """One sample as a row; None where it has no sampled token or no training log-probs.

    Args:
        values: one entry of every array of the batch.
        index: place of the sample in the batch.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: the log-probs or the token mask are missing.
    """
    infer, train = rows.floats(values["generation_logprobs"]), rows.floats(values["prev_logprobs"])
    mask = rows.flags(_named(values, "token_mask", required=True)).copy()
    mask[:1] = False  # the dummy of index 0
    length = rows.number(values.get("input_lengths"))
    if length is not None:
        mask[int(length) :] = False
    token_ids = _named(values, "token_ids")
    row = rows.response(
        infer_logprobs=infer,
        train_logprobs=train,
        mask=mask,
        token_ids=None if token_ids is None else rows.integers(token_ids),
        advantage=_advantage(values.get("advantages"), len(mask)),
        reward=rows.number(_named(values, "reward")),
        source=_source(values.get("agent_ref")),
        seq_id=str(index),
    )
    if row is None or rows.placeholder(row["train_logprobs"][row["mask"]], row["infer_logprobs"][row["mask"]]):
        return None
    kept = rows.number(_named(values, "sample_mask"))
    row["mask_post"] = row["mask"] & (kept is None or kept > 0)
    return row


def attach(logger: Any, collector: Collector, *, group_size: int | None = None) -> Undo:
    """Record every batch that GRPO hands to its logger; the function returned puts the logger back.

    Args:
        logger: `nemo_rl.utils.logger.Logger`, on the driver, where the whole batch is.
        collector: connected with `rank=0, world_size=1`.
        group_size: as `train_data`.

    Raises:
        AttributeError: the logger has no `log_batched_dict_as_jsonl`.
    """

    def record(arguments: Arguments) -> None:
        filename = str(arguments["filename"])
        match = FILE_NAME.search(filename)
        if match is None:
            return
        found = train_data(arguments["to_log"], group_size=group_size)
        if not found["infer_logprobs"]:
            collector.guard.once("nemo_rl", "empty", message=f"{filename}: no sample with log-probs of both sides")
        collector.record(step=int(match[1]), **found)

    return wrap(logger, "log_batched_dict_as_jsonl", guard=collector.guard, before=record)


def _at(values: Any, index: int) -> Any:
    """One entry; None beyond the end: with dynamic sampling `rewards` may be longer or shorter than the rest."""
    try:
        return values[index] if index < len(values) else None
    except TypeError:
        return None


def _named(values: Mapping[str, Any], name: str, *, required: bool = False) -> Any:
    for known in _NAMES[name]:
        if values.get(known) is not None:
            return values[known]
    if required:
        raise KeyError(f"none of {', '.join(_NAMES[name])}")
    return None


def _advantage(value: Any, length: int) -> Any:
    """Per token, or one number for the sample; None where there is none."""
    if value is None:
        return None
    values = rows.floats(value).reshape(-1)
    if len(values) == length:
        return values
    return float(values[0]) if len(values) == 1 and np.isfinite(values[0]) else None


def _source(agent: Any) -> str | None:
    """Name of the agent of a NeMo Gym sample."""
    if isinstance(agent, Mapping):
        agent = agent.get("name")
    return str(agent) if agent else None
