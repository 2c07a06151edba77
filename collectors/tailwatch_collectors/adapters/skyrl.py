"""SkyRL: a training callback.

    trainer.add_callback(tailwatch_collectors.adapters.skyrl.Callback())

or in a `BasePPOExp` of your own: `RayPPOTrainer(..., callbacks=[Callback()])`. It runs on the driver, which holds the
whole batch on the CPU. The fully asynchronous trainer accepts no callbacks: dump its batches and tail them.

Layout: `sequences` are padded on the left, prompt and response; `loss_mask`, `response_mask`, `rollout_logprobs`,
`action_log_probs` and `advantages` are [B, R], aligned on the right: the last column is the last response token.
Tokens of an environment have `loss_mask` 0. The last `metadata["pad_size"]` rows are copies that fill up the batch.

Step s, from 1, trains weights s - 1, and the synchronous trainer sampled with the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.adapters.base import look
from tailwatch_collectors.collector import Collector


def columns(batch: Mapping[str, Any], *, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A `TrainingInputBatch` as keywords of `Collector.record`.

    Args:
        batch: the [B, R] tensors and the [B, S] `sequences`.
        metadata: of the batch: `pad_size`, and `policy_prompt_boundaries`, the (start, stop) rows of every prompt.
    """
    told = metadata or {}
    keep = int(batch["loss_mask"].shape[0]) - int(told.get("pad_size") or 0)
    width = int(batch["loss_mask"].shape[1])
    lengths = rows.integers(batch["response_mask"])[:keep].sum(1).tolist()

    def ragged(value: Any, convert: Any) -> list[Any]:
        array_BR = convert(value)[:keep, -width:] if width else convert(value)[:keep, :0]
        return [row[width - length :] for row, length in zip(array_BR, lengths, strict=True)]

    masks = ragged(batch["loss_mask"], rows.flags)
    found: dict[str, Any] = {
        "infer_logprobs": ragged(batch["rollout_logprobs"], rows.floats),
        "train_logprobs": ragged(batch["action_log_probs"], rows.floats),
        "mask": masks,
        "token_ids": ragged(batch["sequences"], rows.integers),
    }
    if batch.get("advantages") is not None:
        found["advantage"] = base.per_sequence(ragged(batch["advantages"], rows.floats), masks)
    prompts = _prompts(told.get("policy_prompt_boundaries") or (), keep)
    if prompts is not None:
        found["prompt_id"] = prompts
    turn = [rows.turns(mask) for mask in masks]
    if any(row.max(initial=0) > 0 for row in turn):
        found["turn"] = turn
    return found


def _prompts(boundaries: Sequence[tuple[int, int]], count: int) -> list[str] | None:
    """[B] number of each row's prompt; None where the boundaries do not cover every row once."""
    names = [str(number) for number, (start, stop) in enumerate(boundaries) for _ in range(start, stop)]
    return names if len(names) == count else None


class Callback:
    """Records the batch of every step. None of its methods raises."""

    def __init__(self, *, collector: Collector | None = None, **settings: Any) -> None:
        """Hold a collector, or what one is made of at the first step.

        Args:
            collector: to record with; None: one is connected from `settings`, the environment and the trainer's
                configuration.
            **settings: arguments of `connect`.
        """
        self._late = base.Late()
        self._late.use(collector)
        self._settings = settings

    def on_step_end(self, trainer: Any, callback_input: Any, control: Any) -> None:  # noqa: ARG002 - SkyRL's own
        """Record the batch that was trained on."""
        with base.guard("skyrl.on_step_end"):
            batch = callback_input.batch
            if batch is None or batch.get("rollout_logprobs") is None or batch.get("action_log_probs") is None:
                self._say_what_is_missing(batch)
                return
            collector = self._late.get(lambda: self._connect(trainer))
            if collector is None:
                return
            step = int(callback_input.global_step)
            found = columns(batch, metadata=getattr(batch, "metadata", None))
            if "prompt_id" in found:
                found["prompt_id"] = [f"{step}.{name}" for name in found["prompt_id"]]
            collector.record(step=step, train_version=step - 1, infer_version=step - 1, **found)

    def on_train_end(self, trainer: Any, callback_input: Any, control: Any) -> None:  # noqa: ARG002 - SkyRL's own
        """Send what is left and say that the run is over."""
        with base.guard("skyrl.on_train_end"):
            self._late.finished()

    def _nothing(self, trainer: Any, callback_input: Any, control: Any) -> None:
        """An event that does not matter here; SkyRL calls every one of them."""

    on_train_start = on_epoch_start = on_epoch_end = on_step_start = _nothing
    on_eval_start = on_eval_end = on_save = on_log = _nothing

    def _say_what_is_missing(self, batch: Any) -> None:
        if batch is not None and batch.get("rollout_logprobs") is None:
            message = "skyrl: no rollout_logprobs: set generator.sampling_params.logprobs"
        else:
            message = "skyrl: no action_log_probs: this loss takes the rollout's for the old ones and recomputes none"
        base.guard.once("skyrl", message, message=message)

    def _connect(self, trainer: Any) -> Collector:
        config = getattr(trainer, "cfg", None)
        sampling = look(config, "generator", "sampling_params")
        return base.named(
            "skyrl",
            project=look(config, "trainer", "project_name"),
            run=look(config, "trainer", "run_name"),
            # The driver has the whole batch; the ranks in its environment are not those of the trainer.
            rank=0,
            world_size=1,
            config={name: look(sampling, name) for name in ("temperature", "top_p", "top_k", "min_p")},
            settings=self._settings,
        )
