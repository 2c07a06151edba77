"""TRL's GRPOTrainer with ALP, on the CPU: a tiny random Qwen2, sampled by a bfloat16 copy of itself.

    python alp/examples/trl_grpo.py [--steps 4] [--url http://127.0.0.1:8321]

With a URL, what the loss saw (phase `update_perturbed`) and the same weights without noise (phase `update`) stream to
the service side by side. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from tailwatch_alp import Perturbation
from tailwatch_alp.adapters.trl import Observation, attach

RESPONSE = 12


def make_tokenizer() -> Any:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=tokenizer, padding_side="left", **special)


def make_model() -> Any:
    """92,224 random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
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
    return Qwen2ForCausalLM(config)


def sample(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """TRL's rollout: responses of a bfloat16 copy of the policy, with its own log-probs."""
    # A new model, not a deep copy: TRL puts a `forward` on the instance, and a copy of that still runs the policy.
    sampler = Qwen2ForCausalLM(trainer.model.config)
    sampler.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    sampler.bfloat16().eval()  # type: ignore[no-untyped-call]
    prompt_ids, completion_ids, logprobs = [], [], []
    for prompt in prompts:
        ids = trainer.processing_class(prompt)["input_ids"]
        tokens, scores = list(ids), []
        with torch.no_grad():
            for _ in range(RESPONSE):
                row = sampler(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
                token = int(row.exp().multinomial(1))
                tokens.append(token)
                scores.append(float(row[token]))
        prompt_ids.append(ids)
        completion_ids.append(tokens[len(ids) :])
        logprobs.append(scores)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}


def vowels(completions: list[str], **_: Any) -> list[float | None]:
    """The reward: share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def make_trainer(directory: Path, *, steps: int) -> Any:
    """A GRPOTrainer with two micro-batches per step."""
    arguments = GRPOConfig(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=RESPONSE,
        learning_rate=1e-3,
        epsilon=0.5,
        epsilon_high=3.0,
        use_cpu=True,
        bf16=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    return GRPOTrainer(
        model=make_model(),
        reward_funcs=vowels,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["count: ", "spell: "] * 8}),
        processing_class=make_tokenizer(),
        rollout_func=sample,
    )


def stream_to(collector: Any) -> Callable[[Observation], None]:
    """Records both log-probs of every micro-batch, under their own phases."""

    def observe(seen: Observation) -> None:
        for phase, train_logprobs in (("update", seen.clean_BT), ("update_perturbed", seen.perturbed_BT)):
            collector.record(
                step=seen.step,
                phase=phase,
                infer_logprobs=seen.infer_BT,
                train_logprobs=train_logprobs,
                mask=seen.mask_BT,
                final=seen.micro_batch == 1,
            )

    return observe


def main(argv: list[str] | None = None) -> list[Observation]:
    """Train; returns what the loss saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--url", help="stream to this service")
    options = parser.parse_args(argv)
    seen: list[Observation] = []
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(Path(directory), steps=options.steps)
        collector = None
        observers: list[Callable[[Observation], None]] = [seen.append]
        if options.url:
            import tailwatch_collectors as tailwatch

            collector = tailwatch.connect(project="examples", run="trl-alp", url=options.url)
            observers.append(stream_to(collector))
        perturbation = Perturbation(trainer.model, sigma=options.sigma, seed=0)

        def observe(batch: Observation) -> None:
            for observer in observers:
                observer(batch)

        attach(trainer, perturbation, observe=observe)
        trainer.train()
        if collector is not None:
            collector.close()
    return seen


if __name__ == "__main__":
    for batch in main():
        spread = (batch.perturbed_BT - batch.clean_BT)[batch.mask_BT].std().item()
        mismatch = (batch.clean_BT - batch.infer_BT)[batch.mask_BT].std().item()
        place = f"step {batch.step}.{batch.micro_batch}"
        print(f"{place}: noise moves a log-prob by {spread:.1e}, the engine by {mismatch:.1e}")  # noqa: T201
