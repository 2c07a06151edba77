"""The trainer: reinforcement learning of the additions, sampled by an engine that may be many updates behind.

One step is one rollout and `minibatches` optimiser updates on it:

1. every `sync_every` steps the engine takes the weights over;
2. it samples `group` responses to each of `prompts` fresh problems and reports its log-probs;
3. the training engine recomputes the same log-probs, clean and in float32, before anything is updated
   (phase `rollout`), and the batch goes to the sinks;
4. the policy is updated, on whole groups, in the order in which they were sampled.

Versions count optimiser updates, so a token's lag is at most (sync_every - 1) * minibatches when it is recorded.
Nothing depends on a sink or the clock: the same settings on one thread give the same bits on the same machine.

Shapes: P prompts, G responses per prompt, B = P * G sequences, S prompt and response tokens, T response tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab import task
from lab.engines import Engine, Rollout
from lab.evaluate import evaluate, prompt_tokens
from lab.grpo import Arm, denominator, group_advantage, policy_loss
from lab.mismatch import Mismatch, mismatch
from lab.model import Policy
from lab.numerics import NumericsName
from lab.sink import Sink
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.types import BatchMeta

WORLD_SIZE = 1
FRAMEWORK = "lab"
_GRADIENT_NORM_LIMIT = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run is told."""

    arm: Arm = "grpo"
    """Denominator of the ratio: training log-probs (grpo) or inference log-probs (bypass)."""
    engine: NumericsName = "fp8"
    """Numerics of the inference engine."""
    sync_every: int = 16
    """Steps between two weight syncs; 1: on policy."""
    lr: float = 4e-4
    """Learning rate."""
    steps: int = 64
    """Rollouts."""
    seed: int = 0
    """Seed of problems and samples."""
    prompts: int = 16
    """Problems per step."""
    group: int = 8
    """Responses per problem."""
    minibatches: int = 2
    """Optimiser updates per step; divides `prompts`."""
    eval_every: int = 4
    """Steps between two evaluations; the last step is always evaluated."""

    def __post_init__(self) -> None:
        for name in ("sync_every", "steps", "prompts", "group", "minibatches", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.prompts % self.minibatches:
            raise ValueError(f"prompts is {self.prompts}, not a multiple of minibatches {self.minibatches}")

    def described(self) -> dict[str, Any]:
        """The settings, and what a service wants to know about the run they make."""
        return asdict(self) | {
            "world_size": WORLD_SIZE,
            "precision": self.engine,
            "model_class": "dense",
            "temperature": 1.0,
            "top_p": 1.0,
            "staleness_bound": (self.sync_every - 1) * self.minibatches,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did; the sinks got the same numbers."""

    step: int
    """Number of the step."""
    lag: int
    """Updates between the weights that sampled and those that were trained."""
    mismatch: Mismatch
    """Of the recorded batch."""
    scalars: dict[str, float]
    """reward, response_length, entropy, grad_norm, clip_fraction, learning_rate; eval_accuracy where measured."""


class _Update(NamedTuple):
    """Means over the optimiser updates of one step."""

    grad_norm: float
    clip_fraction: float


class Trainer:
    """One run: the policy, its optimiser, the engine and the random numbers."""

    def __init__(self, settings: Settings, *, policy: Policy, sinks: Sequence[Sink] = ()) -> None:
        self.settings = settings
        self.policy = policy
        self._sinks = sinks
        self._engine = Engine(settings.engine)
        self._optimiser = torch.optim.AdamW(policy.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._problems = random.Random(settings.seed)
        self._samples = torch.Generator().manual_seed(settings.seed)

    def run(self) -> Iterator[StepReport]:
        """Train step after step; yields a report after each."""
        for step in range(self.settings.steps):
            yield self._step(step)

    def _step(self, step: int) -> StepReport:
        settings = self.settings
        version = step * settings.minibatches
        if step % settings.sync_every == 0:
            self._sync(step, version)
        due = step % settings.eval_every == 0 or step == settings.steps - 1
        accuracy = {"eval_accuracy": evaluate(self.policy)} if due else {}

        problems_P = [task.draw_problem(self._problems) for _ in range(settings.prompts)]
        problems_B = [problem for problem in problems_P for _ in range(settings.group)]
        rollout = self._engine.sample(prompt_tokens(problems_B), generator=self._samples)
        reward_B = torch.tensor(
            [
                task.reward(problem, response=response)
                for problem, response in zip(problems_B, rollout.responses(), strict=True)
            ]
        )
        advantage_B = group_advantage(reward_B.view(settings.prompts, settings.group)).flatten()
        with torch.no_grad():
            train_logprobs_BT, entropy_BT = self.policy.response_logprobs(rollout.tokens_BS)
        batch = _batch(step, version, rollout, train_logprobs_BT, advantage_B, reward_B, problems_B)
        for sink in self._sinks:
            sink.batch(batch)

        update = self._update(rollout, train_logprobs_BT, advantage_B)
        scalars = {
            "reward": float(reward_B.mean()),
            "response_length": batch.tokens / batch.sequences,
            "entropy": float(entropy_BT[rollout.mask_BT].mean()),
            "grad_norm": update.grad_norm,
            "clip_fraction": update.clip_fraction,
            "learning_rate": settings.lr,
        } | accuracy
        for sink in self._sinks:
            sink.scalars(step, values=scalars)
        return StepReport(step=step, lag=version - rollout.version, mismatch=mismatch(batch), scalars=scalars)

    def _sync(self, step: int, version: int) -> None:
        self._engine.sync(self.policy, version=version)
        for sink in self._sinks:
            sink.event("weight_sync", step=step, payload={"version": version, "engine": self._engine.name})

    def _update(self, rollout: Rollout, train_logprobs_BT: Tensor, advantage_B: Tensor) -> _Update:
        settings = self.settings
        old_BT = denominator(
            settings.arm, infer_logprobs_BT=rollout.infer_logprobs_BT, train_logprobs_BT=train_logprobs_BT
        )
        norms, clipped = [], []
        for rows in torch.arange(len(advantage_B)).chunk(settings.minibatches):
            logprobs_BT = self.policy.response_logprobs(rollout.tokens_BS[rows]).logprobs_BT
            loss, clip_fraction = policy_loss(
                logprobs_BT,
                old_logprobs_BT=old_BT[rows],
                advantage_B=advantage_B[rows],
                mask_BT=rollout.mask_BT[rows],
            )
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norms.append(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), _GRADIENT_NORM_LIMIT))
            clipped.append(clip_fraction)
            self._optimiser.step()
        return _Update(float(torch.stack(norms).mean()), sum(clipped) / len(clipped))


def _batch(
    step: int,
    version: int,
    rollout: Rollout,
    train_logprobs_BT: Tensor,
    advantage_B: Tensor,
    reward_B: Tensor,
    problems_B: list[task.Problem],
) -> Batch:
    """The step as one batch, response tokens only."""
    return Batch.from_arrays(
        BatchMeta(step=step, world_size=WORLD_SIZE, train_version=version, framework=FRAMEWORK),
        infer_logprobs=rollout.infer_logprobs_BT,
        train_logprobs=train_logprobs_BT,
        lengths=rollout.mask_BT.sum(1),
        token_ids=rollout.tokens_BS[:, task.PROMPT_LENGTH :],
        advantage=advantage_B,
        reward=reward_B,
        infer_version=torch.full((len(problems_B),), rollout.version),
        seq_id=[f"{step}-{row}" for row in range(len(problems_B))],
        prompt_id=[task.prompt(problem).removesuffix(":") for problem in problems_B],
    )
