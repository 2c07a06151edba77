"""ALP in a training loop of one's own: a policy learns to answer with even numbers; its sampler runs in bfloat16.

python alp/examples/loop.py
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tailwatch_alp import Perturbation
from tailwatch_alp.loss import LossInputs, token

VOCABULARY, PROMPT, RESPONSE, BATCH = 16, 2, 4, 64


class Policy(nn.Module):
    """A decoder: embedding, causal layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probs [B, T, V] of the token after each."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=self.head.weight.dtype)
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return self.head(hidden).float().log_softmax(-1)  # type: ignore[no-any-return]


def main(steps: int = 16) -> list[float]:
    """Train; returns the mean reward of each step."""
    torch.manual_seed(0)
    policy = Policy()
    perturbation = Perturbation(policy, sigma=0.1, seed=0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    rewards = []
    for step in range(steps):
        sampler = copy.deepcopy(policy).bfloat16()  # a copy is clean; its numerics are not those of the trainer
        tokens = torch.randint(0, VOCABULARY, (BATCH, PROMPT))
        with torch.no_grad():
            for _ in range(RESPONSE):
                tokens = torch.cat((tokens, sampler(tokens)[:, -1].exp().multinomial(1)), dim=1)
            infer_logprobs = chosen(sampler(tokens), tokens)
        reward = (tokens[:, PROMPT:] % 2 == 0).float().mean(-1)
        for micro_batch, rows in enumerate(torch.arange(BATCH).chunk(2)):
            with perturbation.active(step=step, micro_batch=micro_batch):
                logprobs = chosen(policy(tokens[rows]), tokens[rows])
            mask = torch.ones_like(logprobs, dtype=torch.bool)
            advantages = (reward[rows] - reward.mean()) / (reward.std() + 1e-6)
            inputs = LossInputs(
                logprobs_BT=logprobs, infer_logprobs_BT=infer_logprobs[rows], advantages=advantages, mask_BT=mask
            )
            optimizer.zero_grad()
            torch.autograd.backward(token(inputs).loss)
            optimizer.step()
        rewards.append(reward.mean().item())
    return rewards


def chosen(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs [B, RESPONSE] of the response tokens."""
    return logprobs[:, PROMPT - 1 : -1].gather(-1, tokens[:, PROMPT:, None])[..., 0]


if __name__ == "__main__":
    history = main()
    print(f"mean reward: {history[0]:.2f} at the first step, {history[-1]:.2f} at the last")  # noqa: T201
