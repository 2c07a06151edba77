"""ms-swift: an external plug-in, which the launcher names.

    # tailwatch_plugin.py
    from tailwatch_collectors.adapters import ms_swift
    ms_swift.install()

    swift rlhf --rlhf_type grpo --external_plugins tailwatch_plugin.py ...

Layout: a generation is a list of micro-batches, each with a `grpo_batch` whose tensors are [B, T]: the last T tokens of
every sequence, with prompt tokens on the left where prompts are shorter than the longest response and padding on
either side. `completion_mask` is true at response tokens, false at a tool's between them. `old_per_token_logps` are
always recomputed when a generation is prepared: phase `rollout`. `rollout_per_token_logps` come from vLLM, and are
missing where one sequence of the micro-batch has none or another number of tokens.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.adapters.base import look
from tailwatch_collectors.adapters.post_import import on_import
from tailwatch_collectors.adapters.wrapping import Arguments, wrap
from tailwatch_collectors.collector import Collector

late = base.Late()
"""The collector of this training process."""

_settings: dict[str, Any] = {}


def columns(grpo_batch: Any, *, overlong_filter: bool = False) -> dict[str, Any]:
    """One micro-batch of a generation as keywords of `Collector.record`.

    Args:
        grpo_batch: `completion_mask`, `old_per_token_logps`, `rollout_per_token_logps`, `advantages`,
            `truncated_mask`.
        overlong_filter: whether truncated responses are left out of the loss; they then have `mask_post` false.

    Rows without a response token are left out.
    """
    mask = rows.flags(grpo_batch.completion_mask)
    arrays: dict[str, Any] = {
        "infer_logprobs": rows.floats(grpo_batch.rollout_per_token_logps),
        "train_logprobs": rows.floats(grpo_batch.old_per_token_logps),
    }
    if grpo_batch.advantages is not None:
        arrays["advantage"] = rows.floats(grpo_batch.advantages)
    if overlong_filter:
        arrays["mask_post"] = mask & ~rows.flags(grpo_batch.truncated_mask).reshape(-1, 1)
    found = []
    for row, mask_T in enumerate(mask):
        one = rows.response(mask=mask_T, **{name: array[row] for name, array in arrays.items()})
        if one is not None:
            found.append(one)
    cut = rows.columns(found)
    if "advantage" in cut:
        cut["advantage"] = base.per_sequence(cut["advantage"], cut["mask"])
    return cut


def install(*, collector: Collector | None = None, **settings: Any) -> None:
    """Hook swift's GRPO trainer, now or as soon as it is imported. Never raises.

    Args:
        collector: to record with; None: one is connected when the first generation comes, from `settings`, the
            environment and the trainer's arguments.
        **settings: arguments of `connect`.
    """
    late.use(collector)
    _settings.clear()
    _settings.update(settings)
    on_import("swift.rlhf_trainers.grpo_trainer", hook)


def hook(module: ModuleType) -> None:
    """Look at every generation of a `GRPOTrainer`."""

    def after(micro_batches: Any, _seen: None, arguments: Arguments) -> None:
        trainer = arguments["self"]
        if trainer.model.training:
            _record(trainer, [micro_batch["grpo_batch"] for micro_batch in micro_batches])

    wrap(module.GRPOTrainer, "_generate_and_score_completions", guard=base.guard, after=after)


def _record(trainer: Any, grpo_batches: list[Any]) -> None:
    comparable = [one for one in grpo_batches if one.rollout_per_token_logps is not None]
    if len(comparable) < len(grpo_batches):
        message = (
            "ms-swift: micro-batches without rollout_per_token_logps are left out: they need use_vllm with vLLM 0.10.2 "
            "or later, and one log-prob for every response token"
        )
        base.guard.once("ms_swift", "rollout", message=message)
    collector = late.get(lambda: _connect(trainer)) if comparable else None
    if collector is None:
        return
    step = int(trainer.state.global_step)
    stale = bool(look(trainer.args, "async_generate"))
    for number, one in enumerate(comparable, start=1):
        collector.record(
            step=step,
            final=number == len(comparable),
            train_version=step,
            # Weights are synchronised before a generation begins, unless it began during the last step.
            infer_version=None if stale else step,
            **columns(one, overlong_filter=bool(getattr(trainer, "overlong_filter", False))),
        )


def _connect(trainer: Any) -> Collector:
    args, accelerator = trainer.args, trainer.accelerator
    return base.named(
        "ms-swift",
        run=look(args, "run_name") or str(look(args, "output_dir") or "").rstrip("/").rsplit("/")[-1],
        rank=int(accelerator.process_index),
        world_size=int(accelerator.num_processes),
        config={
            "temperature": look(args, "temperature"),
            "top_p": look(args, "top_p"),
            "top_k": look(args, "top_k"),
            "precision": next((name for name in ("bf16", "fp16") if look(args, name)), None),
            # What swift starts its engines with, in the trainer and as a server.
            "logprobs_mode": "processed" if look(args, "use_vllm") else None,
        },
        settings=_settings,
    )
