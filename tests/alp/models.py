"""Tiny models the tests run on: every architecture from a random config, and plain torch stacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 61
LAYERS = 3
WIDTH = 32
ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gpt2")


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mixer(self.norm(x))
        # A causal mean stands for attention: a token sees those before it.
        steps = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device)[:, None]
        x = x + h.cumsum(-2) / steps
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """A decoder written by hand."""

    def __init__(self, *, width: int = WIDTH, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """torch's own stack, whose layers have a fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.token(tokens)))  # type: ignore[no-any-return]


class Logits(nn.Module):
    """A Hugging Face model whose output is the logits, like the plain ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        return self.model(tokens, use_cache=False, **kwargs).logits  # type: ignore[no-any-return]


def hugging_face(name: str, *, layers: int = LAYERS) -> Any:
    """A causal LM of this architecture with random weights."""
    transformers = pytest.importorskip("transformers")
    if name == "gpt2":
        small = {"n_embd": WIDTH, "n_layer": layers, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**small, **off, bos_token_id=1, eos_token_id=2)
        ).float()
    class_name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral", "gemma": "Gemma"}[name]
    config = getattr(transformers, f"{class_name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return getattr(transformers, f"{class_name}ForCausalLM")(config).float()


def build(name: str) -> nn.Module:
    """A model by name; called with token ids it gives logits."""
    torch.manual_seed(0)
    if name == "plain":
        return Plain()
    if name == "encoder":
        return Encoder()
    return Logits(hugging_face(name))


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def chosen_logprobs(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Log-prob [B, T - 1] of each next token."""
    return logits_BTV[:, :-1].log_softmax(-1).gather(-1, tokens_BT[:, 1:, None])[..., 0]
