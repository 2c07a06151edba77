"""Supervised start: trains the policy on correct responses until it solves about 40 % of the problems.

Half-competent is what RL needs: each group of samples then holds both right and wrong answers. The transition is
abrupt (from 0.1 to 0.8 within 50 updates), so after update 600 accuracy is looked at every 10 updates.

    python -m lab.sft --out lab/checkpoints/sft.pt
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lab import task
from lab.evaluate import evaluate
from lab.model import Policy, save_policy

_LEARNING_RATE = 3e-3
_WARMUP_UPDATES = 100
_BATCH = 96
_FIRST_EVAL = 600
_EVAL_EVERY = 10
_IGNORED = -100


def draw_examples(count: int, *, rng: random.Random) -> tuple[Tensor, Tensor]:
    """[B, S] inputs and [B, S] next-token targets; targets inside the prompt are ignored by the loss."""
    texts = []
    for _ in range(count):
        problem = task.draw_problem(rng)
        texts.append(task.prompt(problem) + task.draw_solution(problem, rng=rng))
    tokens = torch.tensor([task.encode(text) for text in texts])
    targets = tokens[:, 1:].clone()
    targets[:, : task.PROMPT_LENGTH - 1] = _IGNORED
    return tokens[:, :-1], targets


def train(*, seed: int, stop_accuracy: float, max_updates: int) -> tuple[Policy, float]:
    """Train from random weights; returns the policy and its sampled accuracy.

    Raises:
        RuntimeError: the accuracy was not reached within `max_updates`.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    policy = Policy()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    accuracy = float("nan")
    for update in range(1, max_updates + 1):
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, update / _WARMUP_UPDATES)
        inputs, targets = draw_examples(_BATCH, rng=rng)
        loss = functional.cross_entropy(policy(inputs).flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        if update % 50 == 0 or (update >= _FIRST_EVAL and update % _EVAL_EVERY == 0):
            line = f"update {update:5d}  loss {loss.item():.3f}  {time.monotonic() - started:4.0f} s"
            if update < _FIRST_EVAL:
                print(line, flush=True)
                continue
            accuracy = evaluate(policy)
            print(f"{line}  accuracy {accuracy:.3f}", flush=True)
            if accuracy >= stop_accuracy:
                return policy, accuracy
    raise RuntimeError(f"accuracy {accuracy:.3f} after {max_updates} updates, wanted {stop_accuracy}")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the checkpoint from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write the weights to")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and examples (default 1)")
    parser.add_argument(
        "--stop-accuracy", type=float, default=0.35, help="stop at this sampled accuracy (default 0.35)"
    )
    parser.add_argument("--max-updates", type=int, default=3000, help="give up after this many (default 3000)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # bit-identical whatever the machine's core count
    policy, accuracy = train(
        seed=arguments.seed, stop_accuracy=arguments.stop_accuracy, max_updates=arguments.max_updates
    )
    save_policy(policy, path=arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e3:.0f} kB, sampled accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
