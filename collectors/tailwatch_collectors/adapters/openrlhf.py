"""OpenRLHF: the experiences of one step, on the driver, before they go to the actors.

Layout: `sequences` [B, T]; everything else [B, T-1], where index i belongs to token i + 1; right-padded. The prompt
and what an environment wrote have 0.0 and `action_mask` 0. `rollout_log_probs` exist only with
`--algo.advantage.is_correction_enable`. `index` is the place of a sample in the step, ordered by prompt.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.base import guard, look, named, wanted
from tailwatch_collectors.adapters.post_import import on_import
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector


def experiences(found: Iterable[Any], *, group_size: int | None = None) -> dict[str, Any]:
    """A list of `Experience` as keywords of `Collector.record`.

    Args:
        found: what `make_experience_batch` returns.
        group_size: `n_samples_per_prompt`; names the prompts 0, 1, ... None: unnamed.

    Raises:
        BatchError: arrays of unequal length.
    """
    return rows.columns(list(itertools.chain.from_iterable(_rows(one, group_size) for one in found)))


def has_rollout(found: Iterable[Any]) -> bool:
    """True where every experience carries the log-probs of the inference engine."""
    return all(getattr(one, "rollout_log_probs", None) is not None for one in found)


def attach(trainer: Any, collector: Collector) -> Undo:
    """Record the experiences of every step; the function returned undoes it.

    Args:
        trainer: `PPOTrainer`, inside its Ray actor: it holds the whole batch of a step.
        collector: connected there with `rank=0, world_size=1`.

    Raises:
        AttributeError: the trainer has no `train_step` or no `experience_maker.make_experience_batch`.
    """
    maker = trainer.experience_maker
    group_size = _group_size(trainer)
    now: list[int] = []

    def note_step(arguments: Arguments) -> None:
        now[:] = [int(arguments["global_step"])]

    def record(result: Any, _seen: Any, _arguments: Arguments) -> None:
        if not now:
            return  # experiences made outside a training step
        if not has_rollout(result):
            message = "no rollout_log_probs: pass --algo.advantage.is_correction_enable"
            collector.guard.once("openrlhf", "no_rollout", message=message)
            return
        collector.record(step=now[0], **experiences(result, group_size=group_size))

    undo_step = wrap(trainer, "train_step", guard=collector.guard, before=note_step)
    undo_maker = wrap(maker, "make_experience_batch", guard=collector.guard, after=record)

    def undo() -> None:
        undo_maker()
        undo_step()

    return undo


def install() -> None:
    """Attach to the trainer of this process once OpenRLHF is imported; a Ray `worker_process_setup_hook`.

    Does nothing in processes without a trainer, and where `TAILWATCH_URL` is not set.
    """
    on_import("openrlhf.trainer.ppo_trainer", _hook)


def _hook(module: Any) -> None:
    base = module.BasePPOTrainer
    made = base.__init__

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        with guard("openrlhf"):
            if wanted():
                run = look(self, "args", "ckpt", "output_dir")
                attach(self, named("openrlhf", run=run, rank=0, world_size=1))

    base.__init__ = init


def _rows(one: Any, group_size: int | None) -> list[Row]:
    infer_BA, train_BA = rows.floats(one.rollout_log_probs), rows.floats(one.action_log_probs)
    mask_BA, tokens_BT = rows.flags(one.action_mask), rows.integers(one.sequences)
    advantages_BA = None if one.advantages is None else rows.floats(one.advantages)
    rewards_B = None if one.rewards is None else rows.floats(one.rewards).reshape(-1)
    index_B = one.index
    found = []
    for b in range(len(mask_BA)):
        place = None if index_B is None else int(index_B[b])
        row = rows.response(
            infer_logprobs=infer_BA[b],
            train_logprobs=train_BA[b],
            mask=mask_BA[b],
            token_ids=tokens_BT[b, 1:],
            advantage=None if advantages_BA is None else advantages_BA[b],
            reward=None if rewards_B is None else float(rewards_B[b]),
            seq_id=None if place is None else str(place),
            prompt_id=None if place is None or not group_size else str(place // group_size),
        )
        if row is not None:
            found.append(row)
    return found


def _group_size(trainer: Any) -> int | None:
    """`args.rollout.n_samples_per_prompt`, flat in older versions; None where neither is there."""
    args = getattr(trainer, "args", None)
    size = getattr(getattr(args, "rollout", None), "n_samples_per_prompt", getattr(args, "n_samples_per_prompt", None))
    return size if isinstance(size, int) and size > 0 else None
