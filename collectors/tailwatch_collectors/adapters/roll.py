"""ROLL: a worker class that the configuration names.

    # my_worker.py
    from roll.pipeline.rlvr.actor_worker import ActorWorker
    from tailwatch_collectors.adapters import roll
    TapActorWorker = roll.tapped(ActorWorker)

    actor_train:
      worker_cls: my_worker.TapActorWorker

Layout: `input_ids` and `response_mask` are [B, T], prompt then response, padded on the right; `infer_logprobs`,
`old_log_probs`, `advantages` and the loss's log-probs are [B, T-1] and index i belongs to token i + 1; prompt and
padding are masked. `final_response_mask` is what filters have left of the mask.

Tapped is `get_old_log_probs_with_cache`, which is handed every micro-batch in the loss and answers with the log-probs
from before the first update: recomputed, or in their place those of the first pass over a sample.
"""

from __future__ import annotations

import functools
from typing import Any

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.adapters.base import look
from tailwatch_collectors.collector import Collector


def columns(batch: Any, *, old_log_probs: Any, others: Any = None) -> dict[str, Any]:
    """A micro-batch as keywords of `Collector.record`.

    Args:
        batch: `infer_logprobs`, `input_ids`, `response_mask` and, where there are, `final_response_mask` and
            `advantages`.
        old_log_probs: [B, T-1] under the training engine.
        others: the arrays of objects beside the tensors: `sample_uuid`, `prompt_id`, `domain`.

    Rows without a response token are left out.
    """
    mask = rows.flags(batch["response_mask"])[:, 1:]
    left = batch.get("final_response_mask")
    token_ids = rows.integers(batch["input_ids"])[:, 1:]
    arrays: dict[str, Any] = {
        "infer_logprobs": rows.floats(batch["infer_logprobs"]),
        "train_logprobs": rows.floats(old_log_probs),
        "token_ids": token_ids,
    }
    if left is not None:
        left = rows.flags(left)
        # As long as the sequences or, like the log-probs, one less.
        arrays["mask_post"] = (left[:, 1:] if left.shape[1] == mask.shape[1] + 1 else left) & mask
    if batch.get("advantages") is not None:
        arrays["advantage"] = rows.floats(batch["advantages"])
    names = {"seq_id": "sample_uuid", "prompt_id": "prompt_id", "source": "domain"}
    strings = {name: (others or {}).get(field) for name, field in names.items()}
    if batch.get("prompt_id") is not None:
        strings["prompt_id"] = rows.integers(batch["prompt_id"]).reshape(-1)
    found = []
    for row, mask_T in enumerate(mask):
        told = {name: str(value[row]) for name, value in strings.items() if value is not None}
        one = rows.response(mask=mask_T, **{name: array[row] for name, array in arrays.items()}, **told)
        if one is not None:
            found.append(one)
    return rows.columns(found)


def tapped(worker: type, *, collector: Collector | None = None, **settings: Any) -> type:
    """A subclass of an actor worker of ROLL that records what its loss compares.

    Args:
        worker: `ActorWorker` of whichever pipeline.
        collector: to record with; None: one is connected in the worker's process from `settings`, the environment
            and the worker's configuration.
        **settings: arguments of `connect`.
    """
    late = base.Late()
    late.use(collector)

    class TapActorWorker(worker):  # type: ignore[misc]
        """The worker, with a look at its log-probs. What the worker returns and raises is its own."""

        def get_old_log_probs_with_cache(self, data: Any, log_probs: Any) -> Any:
            """The worker's answer, recorded."""
            old_log_probs = super().get_old_log_probs_with_cache(data, log_probs)
            with base.guard("roll.get_old_log_probs_with_cache"):
                _look(self, late, settings, data, old_log_probs)
            return old_log_probs

        # Its registration with ROLL's scheduler is attributes of the function, which `wraps` copies.
        @functools.wraps(worker.train_step)  # type: ignore[attr-defined]
        def train_step(self, data: Any) -> Any:
            outcome = worker.train_step(self, data)  # type: ignore[attr-defined]
            with base.guard("roll.train_step"):
                late.end_step(_step(data))
            return outcome

    TapActorWorker.__name__ = TapActorWorker.__qualname__ = f"Tap{worker.__name__}"
    return TapActorWorker


def _step(data: Any) -> int:
    return int(data.meta_info.get("global_step", 0))


def _look(worker: Any, late: base.Late, settings: dict[str, Any], data: Any, old_log_probs: Any) -> None:
    rank = worker.rank_info
    if rank.tp_rank or rank.cp_rank or not rank.is_pipeline_last_stage:
        return  # the same numbers as on the first of these ranks
    infer = data.batch.get("infer_logprobs")
    if infer is None or len(infer) == 0:
        message = "roll: no infer_logprobs: set actor_infer.generating_args.logprobs to 1"
        base.guard.once("roll", "infer_logprobs", message=message)
        return
    collector = late.get(lambda: _connect(worker, settings))
    if collector is None:
        return
    step = _step(data)
    pipeline = worker.pipeline_config
    asynchronous = look(pipeline, "async_generation_ratio")
    recomputed = bool(look(pipeline, "enable_old_logprobs_recompute"))
    collector.record(
        step=step,
        phase="rollout" if recomputed else "update",
        final=False,
        train_version=step,
        # Without asynchronous generation the engine got the weights of this step before it sampled.
        infer_version=step if asynchronous == 0 else None,
        **columns(data.batch, old_log_probs=old_log_probs, others=data.non_tensor_batch),
    )


def _connect(worker: Any, settings: dict[str, Any]) -> Collector:
    pipeline, generating = worker.pipeline_config, look(worker.pipeline_config, "actor_infer", "generating_args")
    return base.named(
        "roll",
        project=look(pipeline, "exp_name"),
        run=look(pipeline, "exp_name"),
        rank=int(worker.rank_info.dp_rank),
        world_size=int(worker.rank_info.dp_size),
        config={name: look(generating, name) for name in ("temperature", "top_p", "top_k")},
        settings=settings,
    )
