"""A GRPOTrainer for tests, on the CPU and from nothing: 92,224 random weights, one token per byte, no downloads.

Imports TRL, so tests import this module inside themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl.trainer import grpo_trainer
from trl.trainer.grpo_config import GRPOConfig

RESPONSE = 10
PROMPTS = ("count: ", "say: ")


def make_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, padding_side="left", pad_token="<pad>", eos_token="<eos>")


def make_model() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=280,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def bfloat16_copy(policy: Any, *, noise: float = 0.0) -> Any:
    """The policy in bfloat16; with some noise where there is to be a mismatch to see."""
    # Not deepcopy: the trainer has put a `forward` on the instance, and the copy's would still be the policy's.
    engine = make_model()
    engine.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for weights in engine.parameters():
            weights.add_(torch.randn_like(weights), alpha=noise)
    return engine.bfloat16().eval()


def sample(model: Any, prompt_ids: list[int], *, length: int) -> tuple[list[int], list[float]]:
    """`length` tokens of a bfloat16 copy of the model, and its log-probs of them."""
    tokens, scores = list(prompt_ids), []
    with torch.no_grad():
        for _ in range(length):
            row = model(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
            token = int(row.exp().multinomial(1))
            tokens.append(token)
            scores.append(float(row[token]))
    return tokens[len(prompt_ids) :], scores


class FakeEngine:
    """What TRL calls instead of vLLM: a bfloat16 copy of the policy with some noise, as old as its last sync."""

    def __init__(self, model: Any, **_: Any) -> None:
        self._policy = model
        self.sync_weights()

    def sync_weights(self) -> None:
        self._engine = bfloat16_copy(self._policy, noise=0.02)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        prompts = kwargs["prompts"] if "prompts" in kwargs else args[0]
        found = [sample(self._engine, ids, length=RESPONSE - row % 3) for row, ids in enumerate(prompts)]
        completion_ids = [ids for ids, _ in found]
        logprobs = [[[score] for score in scores] for _, scores in found]
        answer = prompts, completion_ids, logprobs, None
        return answer if int(trl.__version__.split(".")[0]) >= 1 else (*answer, {})


def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """A rollout_func with two turns: four tokens of the model, three of a tool, the rest of the model's."""
    engine = bfloat16_copy(trainer.model)
    found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    for prompt in prompts:
        ids = trainer.processing_class(prompt)["input_ids"]
        said, scores = sample(engine, ids, length=4)
        tool = [60, 61, 62]
        answer, more = sample(engine, [*ids, *said, *tool], length=RESPONSE - 7)
        found["prompt_ids"].append(ids)
        found["completion_ids"].append([*said, *tool, *answer])
        found["logprobs"].append([*scores, 0.0, 0.0, 0.0, *more])
        found["env_mask"].append([1] * 4 + [0] * 3 + [1] * len(answer))
    return found


def letters(completions: list[str], **_: Any) -> list[float | None]:
    """Reward: share of lower-case letters."""
    return [sum(letter.islower() for letter in text) / max(1, len(text)) for text in completions]


def length(completions: list[str], **_: Any) -> list[float | None]:
    """Reward: length, and nothing to say about the odd ones."""
    return [float(len(text)) if len(text) % 2 == 0 else None for text in completions]


def make_trainer(directory: Path, **arguments: Any) -> Any:
    """Two prompts, four completions of each, two micro-batches per optimiser step."""
    rollout_func = arguments.pop("rollout_func", None)
    more = {"rollout_func": rollout_func} if rollout_func is not None else {}
    config = GRPOConfig(
        output_dir=str(directory),
        **{
            "run_name": "tiny",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": RESPONSE,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 0,
            **arguments,
        },
    )
    return grpo_trainer.GRPOTrainer(
        model=make_model(),
        reward_funcs=[letters, length],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS) * 8, "topic": ["numbers", "speech"] * 8}),
        processing_class=make_tokenizer(),
        **more,
    )
