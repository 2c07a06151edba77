"""The policy: a decoder-only transformer of 103,360 parameters, and its clean log-probs of given responses.

Pre-norm (RMSNorm), GELU MLP of four times the width, learned positions, no biases, head not tied to the embedding.
This is the training engine: float32, one full forward over prompt and response. What samples is a copy with
arithmetic of its own, in `engines.py`.

Shapes: B sequences, S tokens of prompt and response, T response tokens, D width, H heads, V alphabet.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab import task

VOCABULARY = len(task.ALPHABET)
POSITIONS = task.PROMPT_LENGTH + task.MAX_RESPONSE_LENGTH
WIDTH = 64
HEADS = 4
LAYERS = 2
NORM_EPS = 1e-6


class ResponseLogprobs(NamedTuple):
    """What the training engine says about given responses."""

    logprobs_BT: Tensor
    """[B, T] log-prob of each response token, nats; meaningless behind the end of a response."""
    entropy_BT: Tensor
    """[B, T] entropy of the distribution each token was drawn from, nats; likewise."""


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=NORM_EPS)
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp_norm = nn.RMSNorm(WIDTH, eps=NORM_EPS)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """The residual stream after this block."""
        h_BSD = self.attention_norm(x_BSD)
        query, key, value = (split_heads(linear(h_BSD)) for linear in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BSD = x_BSD + self.output(join_heads(mixed))
        hidden = functional.gelu(self.up(self.mlp_norm(x_BSD)))
        return x_BSD + self.down(hidden)  # type: ignore[no-any-return]


class Policy(nn.Module):
    """The whole model: token ids to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=NORM_EPS)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        # With linear layers this small as well, training sits on a plateau of 10 % right answers for good.
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] of the token after each position."""
        x_BSD = self.token(tokens_BS) + self.position.weight[: tokens_BS.shape[1]]
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.head(self.norm(x_BSD))  # type: ignore[no-any-return]

    def response_logprobs(self, tokens_BS: Tensor) -> ResponseLogprobs:
        """Log-probs and entropies of the tokens behind the prompt, for prompts of PROMPT_LENGTH tokens."""
        logits_BTV = self(tokens_BS)[:, task.PROMPT_LENGTH - 1 : -1]
        all_BTV = functional.log_softmax(logits_BTV, dim=-1)
        chosen_BT = all_BTV.gather(-1, tokens_BS[:, task.PROMPT_LENGTH :, None])[..., 0]
        return ResponseLogprobs(chosen_BT, -(all_BTV.exp() * all_BTV).sum(-1))


def split_heads(x_BSD: Tensor) -> Tensor:
    """[B, S, D] to [B, H, S, D / H]."""
    return x_BSD.view(*x_BSD.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)


def join_heads(x_BHSE: Tensor) -> Tensor:
    """[B, H, S, D / H] to [B, S, D]."""
    return x_BHSE.transpose(1, 2).flatten(2)


def save_policy(policy: Policy, *, path: Path) -> None:
    """Write the weights, and nothing else, as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.float() for name, tensor in policy.state_dict().items()}, path)


def load_policy(path: Path) -> Policy:
    """Read weights written by `save_policy`; the file can hold tensors only, never code."""
    policy = Policy()
    policy.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return policy
