"""TRL: every batch of a GRPOTrainer, with the real tensors, in two lines.

    from tailwatch_collectors.adapters import trl
    trl.attach(trainer)

Layout: `completion_ids`, `completion_mask` and every `*_per_token_logps` are [B, C], right-padded, index t is
completion token t; `tool_mask` is 1 where the model wrote; NaN is a token the sampler could not score. A generation
batch is shuffled and split before the loss sees it; a [B] tensor of row numbers put into it travels along.

Two phases. `rollout`: `old_per_token_logps`, recomputed once per generation, which TRL does with vLLM's correction on
or where generation and optimiser steps are not aligned. `update`: the log-probs inside the loss, of every micro-batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailwatch_collectors.adapters import base, rows
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap
from tailwatch_collectors.collector import Collector
from tailwatch_collectors.errors import ConfigurationError

ROW_KEY = "tailwatch_row"
"""[B] int64 in TRL's batch: generation number * ROWS + row."""

ROWS = 2**20

_KEPT = 16
_HOOKS = ("_generate_and_score_completions", "_compute_loss", "_get_per_token_logps_and_entropies")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What is known of the sequences of one generation batch besides their tensors; tuples are in row order."""

    infer_version: int | None
    """Optimiser step whose weights vLLM had loaded; None where the sampler is the rollout_func's own affair."""
    reward: tuple[float, ...] | None
    """[B] weighted sum of the reward functions; NaN where none scored the sequence."""
    prompt_id: tuple[str, ...]
    """[B] one name per prompt."""
    seq_id: tuple[str, ...]
    """[B] sequence names, unique within the run."""
    source: tuple[str, ...] | None
    """[B] data source."""


def columns(
    inputs: Mapping[str, Any],
    *,
    train_logprobs: Any,
    entropy: Any = None,
    rejects: bool = False,
) -> dict[str, Any]:
    """TRL's batch, of a generation or of a micro-batch, as keywords of `Collector.record`.

    Args:
        inputs: `sampling_per_token_logps`, `completion_mask`, `completion_ids`, `advantages` and, where there are,
            `tool_mask` and `importance_sampling_ratio`.
        train_logprobs: [B, C] `old_per_token_logps`, or those of the loss.
        entropy: [B, C] of the training policy, nats.
        rejects: whether an importance ratio of 0 means that the token or sequence was masked out, which is so for
            `vllm_importance_sampling_mode` `token_mask` and `sequence_mask`.
    """
    mask = inputs["completion_mask"]
    tool_mask = inputs.get("tool_mask")
    if tool_mask is not None:
        mask = mask * tool_mask
    found = {
        "infer_logprobs": inputs["sampling_per_token_logps"],
        "train_logprobs": train_logprobs,
        "mask": mask,
        "token_ids": inputs["completion_ids"],
        "advantage": inputs.get("advantages"),
        "entropy": entropy,
        "padding": "right",
    }
    ratio = inputs.get("importance_sampling_ratio")
    if rejects and ratio is not None:
        found["mask_post"] = (mask * (ratio != 0)) != 0  # [B, 1] ratios of whole sequences broadcast
    if tool_mask is not None:
        # Rows whose every token is masked out have no outermost token to tell their length by.
        lengths = rows.integers(inputs["completion_mask"]).sum(1)
        found["lengths"] = lengths
        turn = [rows.turns(row) for row in rows.flags(mask)]
        if any(row.max(initial=0) > 0 for row in turn):
            found["turn"] = np.stack(turn)
    return {name: value for name, value in found.items() if value is not None}


def generation(
    name: str,
    *,
    infer_version: int | None,
    rank: int,
    batch_size: int,
    num_generations: int,
    rewards_per_func: Any = None,
    reward_weights: Any = None,
    examples: Sequence[Mapping[str, Any]] = (),
    source: str | None = None,
) -> Generation:
    """What the columns of one generation batch do not say.

    Args:
        name: of this generation, unique within the run.
        infer_version: optimiser step whose weights sampled it; None: unknown.
        rank: process; its rows are the `rank`-th block of all.
        batch_size: B, rows of this process.
        num_generations: completions per prompt; they follow each other, across processes too.
        rewards_per_func: [B * processes, F] what each reward function said, NaN where it said nothing.
        reward_weights: [F] weight of each.
        examples: B rows of the dataset.
        source: their column that names the data source.
    """
    first = rank * batch_size
    reward = None
    if rewards_per_func is not None:
        weights = [1.0] * rewards_per_func.shape[1] if reward_weights is None else rows.floats(reward_weights).tolist()
        reward = tuple(
            _weighted(row, weights) for row in rows.floats(rewards_per_func)[first : first + batch_size].tolist()
        )
    groups = [(first + row) // num_generations for row in range(batch_size)]
    named = source if len(examples) == batch_size and all(source in example for example in examples) else None
    return Generation(
        infer_version=infer_version,
        reward=reward,
        prompt_id=tuple(f"{name}.{group}" for group in groups),
        seq_id=tuple(f"{name}.{first + row}" for row in range(batch_size)),
        source=None if named is None else tuple(str(example[named]) for example in examples),
    )


def _weighted(scores: Sequence[float], weights: Sequence[float]) -> float:
    told = [score * weight for score, weight in zip(scores, weights, strict=True) if not math.isnan(score)]
    return sum(told) if told else math.nan


def per_sequence(generations: Mapping[int, Generation], row_ids: Sequence[int]) -> dict[str, Any]:
    """Columns per sequence of the rows with these numbers; those that any of them lacks are left out."""
    places = [divmod(row_id, ROWS) for row_id in row_ids]
    if not places or any(number not in generations for number, _ in places):
        return {}
    found: dict[str, Any] = {}
    versions = [generations[number].infer_version for number, _ in places]
    if None not in versions:
        found["infer_version"] = versions
    for name in ("reward", "prompt_id", "seq_id", "source"):
        told = [(getattr(generations[number], name), row) for number, row in places]
        if all(values is not None for values, _ in told):
            found[name] = [values[row] for values, row in told]
    return found


def attach(
    trainer: Any,
    *,
    collector: Collector | None = None,
    update: bool | None = None,
    source: str | None = None,
    **settings: Any,
) -> Undo:
    """Record every generation and loss batch of a GRPOTrainer.

    Args:
        trainer: a `GRPOTrainer` that has been made; of TRL 0.29 or later.
        collector: to record with; None: one is connected from `settings`, the environment and the trainer's own
            arguments (run name, temperature, precision, rank, world size).
        update: whether to record the log-probs of the loss too. None: only where TRL does not recompute
            `old_per_token_logps`, for then they are the only ones there are.
        source: column of the dataset that names the data source of each prompt.
        **settings: arguments of `connect`.

    Returns:
        A function that takes it off again.

    Raises:
        ConfigurationError: the trainer is none that this adapter knows, or a setting is wrong.
    """
    missing = [name for name in _HOOKS if not callable(getattr(trainer, name, None))]
    if missing:
        kind = f"{type(trainer).__module__}.{type(trainer).__name__}"
        raise ConfigurationError(
            f"{kind} of trl {base.version('trl')} has no {missing[0]}: need a GRPOTrainer, TRL 0.29+"
        )
    if getattr(trainer, "_tailwatch", None) is not None:
        raise ConfigurationError(f"{type(trainer).__name__} is attached already")
    return _Tap(trainer, collector or _connect(trainer, settings), update=update, source=source).install()


def _connect(trainer: Any, settings: Mapping[str, Any]) -> Collector:
    args, accelerator = trainer.args, trainer.accelerator
    with_vllm = bool(getattr(trainer, "use_vllm", False))
    dtype = getattr(getattr(trainer, "model", None), "dtype", None)
    precision = next((name for name in ("bf16", "fp16") if getattr(args, name, False)), None)
    return base.named(
        "trl",
        run=getattr(args, "run_name", None) or str(getattr(args, "output_dir", "") or "").rstrip("/").rsplit("/")[-1],
        rank=int(accelerator.process_index),
        world_size=int(accelerator.num_processes),
        config={
            "temperature": base.look(args, "temperature"),
            **{name: base.look(args, name) for name in ("top_p", "top_k", "min_p")},
            "precision": precision or (None if dtype is None else str(dtype).removeprefix("torch.")),
            # TRL asks the engine it starts for processed log-probs; what a rollout_func returns is its own affair.
            "logprobs_mode": "processed" if with_vllm and getattr(trainer, "rollout_func", None) is None else None,
        },
        settings=settings,
    )


class _Tap:
    """The hooks of one trainer and what they have to remember between each other."""

    def __init__(self, trainer: Any, collector: Collector, *, update: bool | None, source: str | None) -> None:
        self._trainer = trainer
        self._collector = collector
        self._update = update
        self._source = source
        self._generations: OrderedDict[int, Generation] = OrderedDict()
        self._number = 0
        self._rewards: Any = None
        self._listening = False
        self._heard: tuple[Any, Any] | None = None

    def install(self) -> Undo:
        trainer, guard = self._trainer, self._collector.guard
        hooks = [
            wrap(trainer, "_generate_and_score_completions", guard=guard, after=self._generated),
            wrap(trainer, "_get_per_token_logps_and_entropies", guard=guard, after=self._scored),
            wrap(trainer, "_compute_loss", guard=guard, before=self._loss_begins, after=self._loss_ended),
        ]
        if hasattr(trainer, "_calculate_rewards"):
            hooks.append(wrap(trainer, "_calculate_rewards", guard=guard, after=self._rewarded))
        trainer._tailwatch = self

        def undo() -> None:
            for take_off in reversed(hooks):
                take_off()
            trainer._tailwatch = None

        return undo

    # --- the hooks, in the order TRL calls them ---

    def _rewarded(self, rewards_per_func: Any, _seen: None, _arguments: Arguments) -> None:
        self._rewards = rewards_per_func

    def _generated(self, output: dict[str, Any], _seen: None, arguments: Arguments) -> None:
        rewards, self._rewards = self._rewards, None
        if not self._trainer.model.training:  # an evaluation
            return
        if output.get("sampling_per_token_logps") is None:
            self._collector.guard.once(
                "trl",
                "no sampling log-probs",
                message="trl: no sampling_per_token_logps, nothing to compare with: use vLLM with "
                "vllm_importance_sampling_correction=True, or a rollout_func that returns log-probs",
            )
            return
        batch_size = int(output["completion_ids"].shape[0])
        number, self._number = self._number, self._number + 1
        self._generations[number] = generation(
            f"{int(self._trainer.state.global_step)}.{number}",
            infer_version=self._loaded(),
            rank=int(self._trainer.accelerator.process_index),
            batch_size=batch_size,
            num_generations=int(self._trainer.num_generations),
            rewards_per_func=rewards,
            reward_weights=getattr(self._trainer, "reward_weights", None),
            examples=arguments["inputs"],
            source=self._source,
        )
        while len(self._generations) > _KEPT:
            self._generations.popitem(last=False)
        row_ids = range(number * ROWS, number * ROWS + batch_size)
        # A tensor, for TRL to shuffle and split with its own; on the CPU, so that reading it never waits for a GPU.
        output[ROW_KEY] = output["completion_mask"].new_tensor(list(row_ids), device="cpu")
        if output.get("old_per_token_logps") is not None:
            self._record(
                "rollout",
                row_ids,
                self._last_generation(),
                columns(output, train_logprobs=output["old_per_token_logps"], rejects=self._rejects()),
            )

    def _scored(self, answer: Any, _seen: None, _arguments: Arguments) -> None:
        # The first forward of a loss; it is a tuple of two or three, by version.
        if self._listening and self._heard is None:
            self._heard = answer[0], answer[1]

    def _loss_begins(self, arguments: Arguments) -> None:
        inputs = arguments["inputs"]
        wanted = self._update if self._update is not None else inputs.get("old_per_token_logps") is None
        trains = self._trainer.model.training and inputs.get("sampling_per_token_logps") is not None
        self._listening, self._heard = bool(wanted and trains), None

    def _loss_ended(self, _loss: Any, _seen: None, arguments: Arguments) -> None:
        inputs = arguments["inputs"]
        heard, self._heard, self._listening = self._heard, None, False
        if heard is None:
            return
        row_ids = rows.integers(inputs[ROW_KEY]).tolist() if ROW_KEY in inputs else []
        found = columns(inputs, train_logprobs=heard[0].detach(), rejects=self._rejects())
        if heard[1] is not None:
            found["entropy"] = heard[1].detach()
        self._record("update", row_ids, self._last_micro_batch(), found)

    # --- inside ---

    def _record(self, phase: Any, row_ids: Sequence[int], final: bool, found: dict[str, Any]) -> None:
        step = int(self._trainer.state.global_step)
        self._collector.record(
            step=step,
            phase=phase,
            final=final,
            train_version=step,
            **{**per_sequence(self._generations, row_ids), **found},
        )

    def _loaded(self) -> int | None:
        step = getattr(self._trainer, "_last_loaded_step", None) if getattr(self._trainer, "use_vllm", False) else None
        return None if step is None or int(step) < 0 else int(step)

    def _rejects(self) -> bool:
        return str(getattr(self._trainer, "vllm_importance_sampling_mode", "")).endswith("_mask")

    def _accumulation(self) -> int:
        return int(
            getattr(self._trainer, "current_gradient_accumulation_steps", 0)
            or self._trainer.args.gradient_accumulation_steps
        )

    def _last_generation(self) -> bool:
        every = int(self._trainer.args.steps_per_generation) * int(self._trainer.num_iterations)
        accumulation = self._accumulation()
        return int(self._trainer._step) % accumulation + every >= accumulation

    def _last_micro_batch(self) -> bool:
        return (int(self._trainer._step) + 1) % self._accumulation() == 0
