"""AReaL: the trajectories that go into `compute_advantages`, where both sides are still as they were computed.

Layout: [G, T] per trajectory group, prompt and response, right-padded. Before `compute_advantages` index i of
`logprobs` (the rollout's), `loss_mask` and `versions` is token i, while `prox_logp`, a model forward, is already
shifted: index i is token i + 1. Afterwards `logprobs` and `loss_mask` are shifted too, and may be overwritten by
`prox_logp` (`recompute_logprob`) or `prox_logp` by them (neither decoupled nor recomputed); so both sides are taken
before, and only the advantages after. `versions` holds one weight version per token, -1 where nothing was sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector

_KEYS = ("input_ids", "attention_mask", "loss_mask", "logprobs", "versions", "prox_logp", "rewards")


def trajectories(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Trajectories as keywords of `Collector.record`; those of one group share a `prompt_id`.

    Args:
        before: what goes into `compute_advantages`: `logprobs`, `prox_logp`, `loss_mask`, `input_ids`, and where
            they are there `versions` and `rewards`.
        after: what comes out of it, for the advantages.

    Raises:
        BatchError: arrays of unequal length.
        KeyError: log-probs or the mask are missing.
    """
    outcome: Sequence[Mapping[str, Any] | None] = after if after is not None else [None] * len(before)
    found = (_rows(one, done, group) for group, (one, done) in enumerate(zip(before, outcome, strict=True)))
    return rows.columns(list(itertools.chain.from_iterable(found)))


def attach(trainer: Any, collector: Collector) -> Undo:
    """Record the trajectories of every step; the function returned undoes it.

    Args:
        trainer: `PPOTrainer`, or its actor. With a single controller the tensors are remote handles and are fetched,
            which the training loop waits for; with SPMD every rank records its shard.
        collector: connected with `rank=0, world_size=1` on a single controller.

    Raises:
        AttributeError: there is no `compute_advantages`.
    """
    actor = trainer if hasattr(trainer, "compute_advantages") else trainer.actor
    steps = itertools.count()

    def keep(arguments: Arguments) -> list[dict[str, Any]] | None:
        data = arguments["data"] if "data" in arguments else arguments["args"][0]
        if not all(one.get("prox_logp") is not None for one in data):
            message = "no prox_logp: set actor.recompute_logprob, or actor.prox_logp_method=recompute"
            collector.guard.once("areal", "no_prox_logp", message=message)
            return None
        return [{name: _local(one[name]) for name in _KEYS if one.get(name) is not None} for one in data]

    def record(result: Any, kept: list[dict[str, Any]] | None, _arguments: Arguments) -> None:
        version = _version(actor)
        step = next(steps) if version is None else version
        if kept is None:
            return
        after = [{"advantages": _local(one["advantages"])} for one in result]
        collector.record(step=step, train_version=version, **trajectories(kept, after))

    return wrap(actor, "compute_advantages", guard=collector.guard, before=keep, after=record)


def _rows(before: Mapping[str, Any], after: Mapping[str, Any] | None, group: int) -> list[Row]:
    infer_GT, mask_GT = rows.floats(before["logprobs"]), rows.flags(before["loss_mask"])
    train_GT, tokens_GT = rows.floats(before["prox_logp"]), rows.integers(before["input_ids"])
    versions_GT = None if before.get("versions") is None else rows.integers(before["versions"])
    rewards_G = None if before.get("rewards") is None else rows.floats(before["rewards"]).reshape(-1)
    advantages_GT = None if after is None else rows.floats(after["advantages"])
    found = []
    for g in range(len(mask_GT)):
        # Index i from here on is token i + 1, as in a model's forward.
        width = mask_GT.shape[1] - 1
        row = rows.response(
            infer_logprobs=infer_GT[g, 1:],
            train_logprobs=train_GT[g, :width],
            mask=mask_GT[g, 1:],
            token_ids=tokens_GT[g, 1:],
            infer_version=None if versions_GT is None else versions_GT[g, 1:],
            advantage=None if advantages_GT is None else advantages_GT[g, :width],
            reward=None if rewards_G is None else float(rewards_G[g]),
            prompt_id=str(group),
            seq_id=f"{group}.{g}",
        )
        if row is not None:
            found.append(row)
    return found


def _local(value: Any) -> Any:
    """The tensor behind a remote handle; a tensor is its own."""
    return value.to_local() if hasattr(value, "to_local") and not hasattr(value, "detach") else value


def _version(actor: Any) -> int | None:
    """Version of the training weights, which AReaL counts by training steps; None where the actor does not say."""
    ask = getattr(actor, "get_version", None)
    version = ask() if callable(ask) else None
    return version if isinstance(version, int) and not isinstance(version, bool) and version >= 0 else None
