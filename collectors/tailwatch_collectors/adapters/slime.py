"""slime and miles: two functions that the launcher names, no line of code.

    --rollout-data-postprocess-path tailwatch_collectors.adapters.slime.rollout_data_postprocess
    --custom-tis-function-path tailwatch_collectors.adapters.slime.tis_function     (with --use-tis or
                                                                                     --get-mismatch-metrics)

Layout: dicts of lists, one 1-D tensor per sample of this data-parallel rank; `tokens` are prompt and response,
everything else is response-only, index t is response token t; tokens of tools have `loss_masks` 0. Under context
parallelism log-probs and advantages are slices, which the framework's own function gathers: on every rank of the
group, whether or not it records, for a collective that one rank leaves out stops them all.

The first function sees the whole rollout, with ids and rewards, in slime; slime skips its log-probs where the loss can
reuse its own, and miles hands over nothing, so there it only counts steps. The second sees micro-batches in the loss
and records where the first could not.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.collector import Collector

late = base.Late()
"""The collector of this training process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where this process is among the others."""

    rank: int = 0
    """Data-parallel rank."""
    world_size: int = 1
    """Data-parallel ranks."""
    context_rank: int = 0
    """Context-parallel rank."""
    context_size: int = 1
    """Context-parallel ranks."""
    tensor_rank: int = 0
    """Tensor-parallel rank."""
    last_stage: bool = True
    """Whether the log-probs are made here."""

    @property
    def gathers(self) -> bool:
        """Whether this process has log-probs to gather."""
        return self.last_stage and self.tensor_rank == 0

    @property
    def records(self) -> bool:
        """Whether it is this process that records for its data-parallel rank."""
        return self.gathers and self.context_rank == 0


@dataclass(slots=True)
class _Progress:
    """How far the training process is."""

    step: int | None = None
    """The rollout that is being trained on."""
    recorded: bool = False
    """Its log-probs are recorded already."""
    calls: itertools.count[int] = field(default_factory=itertools.count)
    """Rollouts begun, where the framework does not number them."""


progress = _Progress()


def columns(data: Mapping[str, Any], *, rollout_id: int, samples_per_prompt: int | None = None) -> dict[str, Any]:
    """The rollout data of one data-parallel rank as keywords of `Collector.record`.

    Args:
        data: `log_probs`, `rollout_log_probs` and `advantages` whole, not context-parallel slices; `tokens`,
            `response_lengths`, `loss_masks`; ids, rewards and sources where there are.
        rollout_id: number of the rollout; makes the sequence names unique.
        samples_per_prompt: responses per prompt; None: prompts are not named.
    """
    masks = [rows.flags(mask) for mask in data["loss_masks"]]
    lengths = [int(length) for length in data["response_lengths"]]
    found: dict[str, Any] = {
        "infer_logprobs": [rows.floats(row) for row in data["rollout_log_probs"]],
        "train_logprobs": [rows.floats(row) for row in data["log_probs"]],
        "mask": masks,
    }
    if data.get("tokens") is not None:
        tokens = [rows.integers(row) for row in data["tokens"]]
        found["token_ids"] = [row[len(row) - length :] for row, length in zip(tokens, lengths, strict=True)]
    if data.get("advantages") is not None:
        found["advantage"] = base.per_sequence([rows.floats(row) for row in data["advantages"]], masks)
    rewards = [rows.number(reward) for reward in data.get("local_raw_reward") or data.get("rewards") or ()]
    if len(rewards) == len(masks) and None not in rewards:
        found["reward"] = rewards
    if data.get("partition") is not None:
        found["seq_id"] = [f"{rollout_id}.{int(place)}" for place in data["partition"]]
    indices = data.get("sample_indices")
    if indices is not None and samples_per_prompt and None not in indices:
        found["prompt_id"] = [str(int(index) // samples_per_prompt) for index in indices]
    if data.get("source_names") is not None:
        found["source"] = list(data["source_names"])
    turn = [rows.turns(mask) for mask in masks]
    if any(row.max(initial=0) > 0 for row in turn):
        found["turn"] = turn
    return found


def rollout_data_postprocess(args: Any, rollout_id: int | None = None, rollout_data: Any = None) -> None:
    """For `--rollout-data-postprocess-path`: before a rollout is trained on. Changes nothing, never raises.

    Args:
        args: the launcher's arguments.
        rollout_id: number of the rollout; None in miles, which counts them from `args.start_rollout_id`.
        rollout_data: what this rank trains on; None in miles.
    """
    with base.guard("slime.rollout_data_postprocess"):
        place = placement()
        counted = int(getattr(args, "start_rollout_id", None) or 0) + next(progress.calls)
        if progress.step is not None:
            late.end_step(progress.step)  # its micro-batches said that more would follow
        progress.step, progress.recorded = counted if rollout_id is None else int(rollout_id), False
        if rollout_data is None or not place.gathers:
            return
        if not rollout_data.get("log_probs") or not rollout_data.get("rollout_log_probs"):
            _say_what_is_missing(rollout_data)
            return
        whole = _whole(rollout_data, place)
        progress.recorded = True
        collector = late.get(lambda: _connect(args, place)) if place.records else None
        if collector is not None:
            samples = getattr(args, "n_samples_per_prompt", None)
            # The rollout number counts weight updates; which of them sampled it stays with the rollout side.
            collector.record(
                step=progress.step,
                train_version=progress.step,
                **columns(whole, rollout_id=progress.step, samples_per_prompt=samples),
            )


def tis_function(args: Any, **kwargs: Any) -> tuple[Any, Any, dict[str, Any]]:
    """For `--custom-tis-function-path`: in the loss, of every micro-batch.

    With `--use-tis` the framework's own `vanilla_tis_function` computes the answer; with `--get-mismatch-metrics`
    alone the loss and the masks are handed back as they came.

    Args:
        args: the launcher's arguments.
        **kwargs: pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths, ...

    Returns:
        The loss, the masks, and the framework's own metrics of them.
    """
    with base.guard("slime.tis_function"):
        place = placement()
        if (
            place.gathers
            and not progress.recorded
            and kwargs.get("train_log_probs")
            and kwargs.get("rollout_log_probs")
        ):
            data = {
                "log_probs": kwargs["train_log_probs"],
                "rollout_log_probs": kwargs["rollout_log_probs"],
                "loss_masks": kwargs["loss_masks"],
                "response_lengths": kwargs["response_lengths"],
                "total_lengths": kwargs["total_lengths"],
            }
            layout = getattr(args, "qkv_format", "thd"), kwargs.get("max_seq_lens")
            whole = _whole(data, place, layout=layout)
            collector = late.get(lambda: _connect(args, place)) if place.records else None
            if collector is not None:
                step = progress.step or 0
                collector.record(
                    step=step,
                    phase="rollout" if _recomputed(args) else "update",
                    final=False,
                    train_version=step,
                    **columns(whole, rollout_id=step),
                )
    if getattr(args, "use_tis", False):
        answer: tuple[Any, Any, dict[str, Any]] = _vanilla()(args=args, **kwargs)
        return answer
    return kwargs["pg_loss"], kwargs["loss_masks"], {}


def placement() -> Placement:
    """Where this process is, as miles or Megatron has it; alone where neither is loaded."""
    miles = sys.modules.get("miles.backends.training_utils.parallel")
    if miles is not None:
        state = miles.get_parallel_state()
        return Placement(
            rank=int(state.effective_dp.rank),
            world_size=int(state.effective_dp.size),
            context_rank=int(state.cp.rank),
            context_size=int(state.cp.size),
            tensor_rank=int(state.tp.rank),
            last_stage=bool(state.is_pp_last_stage),
        )
    megatron = sys.modules.get("megatron.core.parallel_state")
    if megatron is None:
        return Placement()
    return Placement(
        rank=int(megatron.get_data_parallel_rank(with_context_parallel=False)),
        world_size=int(megatron.get_data_parallel_world_size(with_context_parallel=False)),
        context_rank=int(megatron.get_context_parallel_rank()),
        context_size=int(megatron.get_context_parallel_world_size()),
        tensor_rank=int(megatron.get_tensor_model_parallel_rank()),
        last_stage=bool(megatron.is_pipeline_last_stage()),
    )


def _whole(data: Mapping[str, Any], place: Placement, *, layout: tuple[str, Any] = ("thd", None)) -> Mapping[str, Any]:
    """The data with every context-parallel slice made whole: the same collectives in the same order on each rank."""
    if place.context_size == 1:
        return data
    in_miles = "miles.backends.training_utils.cp_utils" in sys.modules
    gather = sys.modules[
        "miles.backends.training_utils.cp_utils" if in_miles else "slime.backends.megatron_utils.cp_utils"
    ].all_gather_with_cp
    qkv_format, max_seq_lens = layout
    whole = dict(data)
    for name in ("rollout_log_probs", "log_probs", "advantages"):
        if data.get(name) is None:
            continue
        more: Sequence[tuple[Any, ...]] = [()] * len(data[name])
        if in_miles:
            widths = max_seq_lens if max_seq_lens is not None else [None] * len(data[name])
            more = [(qkv_format, width) for width in widths]
        whole[name] = [
            gather(row.detach(), int(total), int(length), *last).detach()
            for row, total, length, last in zip(
                data[name], data["total_lengths"], data["response_lengths"], more, strict=True
            )
        ]
    return whole


def _recomputed(args: Any) -> bool:
    """Whether the loss is handed log-probs from before the first update, not its own."""
    in_miles = "miles" in sys.modules and not getattr(args, "skip_actor_forward_only", False)
    return in_miles or bool(getattr(args, "get_mismatch_metrics", False))


def _vanilla() -> Any:
    if "miles" in sys.modules:
        from miles.backends.training_utils.loss_hub.corrections import (  # type: ignore[import-not-found]
            vanilla_tis_function,
        )
    else:
        from slime.backends.megatron_utils.loss import vanilla_tis_function  # type: ignore[import-not-found]
    return vanilla_tis_function


def _say_what_is_missing(data: Mapping[str, Any]) -> None:
    if not data.get("rollout_log_probs"):
        base.guard.once("slime", "rollout", message="slime: the rollout returned no log-probs, nothing to compare")
        return
    message = (
        "slime: log_probs are not recomputed before training, so they are recorded in the loss, if "
        "--custom-tis-function-path is tailwatch_collectors.adapters.slime.tis_function, with --use-tis or "
        "--get-mismatch-metrics"
    )
    base.guard.once("slime", "log_probs", message=message)


def _connect(args: Any, place: Placement) -> Collector:
    framework = "miles" if "miles" in sys.modules else "slime"
    return base.named(
        framework,
        project=getattr(args, "wandb_project", None),
        run=getattr(args, "wandb_group", None),
        rank=place.rank,
        world_size=place.world_size,
        config={
            "temperature": getattr(args, "rollout_temperature", None),
            "top_p": getattr(args, "rollout_top_p", None),
            "top_k": getattr(args, "rollout_top_k", None),
            "precision": "bf16" if getattr(args, "bf16", False) else None,
        },
    )
