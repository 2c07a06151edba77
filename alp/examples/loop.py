"""ALP in a training loop of one's own: a policy learns to answer with even numbers; its sampler runs in bfloat16."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tailwatch_alp import Perturbation
from tailwatch_alp.loss import LossInputs, token

PROMPT, RESPONSE, BATCH, VOCABULARY = 2, 4, 64, 16


def chosen(model: Any, tokens: Tensor) -> Tensor:
    """Log-probs [B, RESPONSE] of the response tokens."""
    logprobs = model(tokens).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(-1, tokens[:, PROMPT:, None])[..., 0]  # type: ignore[no-any-return]


def main(steps: int = 16) -> list[float]:
    """Train; returns the mean reward of each step."""
    torch.manual_seed(0)
    shape: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    policy: Any = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape))
    perturbation = Perturbation(policy, sigma=0.1, seed=0)
    optimizer, rewards = torch.optim.AdamW(policy.parameters(), lr=5e-3), []
    for step in range(steps):
        sampler = deepcopy(policy).bfloat16()  # a copy is clean; its numerics are not those of the trainer
        tokens = torch.randint(0, VOCABULARY, (BATCH, PROMPT))
        with torch.no_grad():
            for _ in range(RESPONSE):
                tokens = torch.cat((tokens, sampler(tokens).logits[:, -1].float().softmax(-1).multinomial(1)), dim=1)
            infer = chosen(sampler, tokens)
        reward = (tokens[:, PROMPT:] % 2 == 0).float().mean(-1)
        advantages = (reward - reward.mean()) / (reward.std() + 1e-6)
        for number, rows in enumerate(torch.arange(BATCH).chunk(2)):
            with perturbation.active(step=step, micro_batch=number):
                logprobs = chosen(policy, tokens[rows])
            batch = {"infer_logprobs_BT": infer[rows], "advantages": advantages[rows], "mask_BT": infer[rows] < 0}
            optimizer.zero_grad()
            torch.autograd.backward(token(LossInputs(logprobs_BT=logprobs, **batch)).loss)
            optimizer.step()
        rewards.append(reward.mean().item())
    return rewards


if __name__ == "__main__":
    print(main())  # noqa: T201
