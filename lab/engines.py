"""The inference engine: a separate copy of the policy that samples with numerics of its own and a KV cache.

It shares no forward code with the training engine: one token at a time against cached keys and values, in its own
precision, with the weights of its last sync. So even at float32 and equal weights the two disagree in the last bits,
and the log-probs it reports are those of the distribution it really sampled from.

Shapes: B sequences, P prompt tokens, S tokens of one call, T response tokens, C cached positions, D width, V alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lab import task
from lab.model import LAYERS, NORM_EPS, POSITIONS, Policy, join_heads, split_heads
from lab.numerics import NUMERICS, NumericsName


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Sampled responses as the engine reports them, cut to the longest."""

    tokens_BS: Tensor
    """[B, P + T] prompt, response, padding."""
    infer_logprobs_BT: Tensor
    """[B, T] float32 log-prob of each sampled token; 0 behind the end of a response."""
    mask_BT: Tensor
    """[B, T] True on response tokens, end-of-sequence token included."""
    version: int
    """Version of the weights that sampled: optimiser updates at the last sync."""

    def responses(self) -> list[str]:
        """The responses as text, without padding."""
        tokens = self.tokens_BS[:, task.PROMPT_LENGTH :].tolist()
        lengths = self.mask_BT.sum(1).tolist()
        return [task.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True)]


@dataclass(slots=True)
class _Cache:
    """Keys and values of one layer: [B, H, POSITIONS, D / H], filled up to `length`."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store S more positions; returns all keys and values so far."""
        end = self.length + key.shape[2]
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Engine:
    """An inference copy: `sync` takes the weights over, `sample` generates from what was last taken over."""

    def __init__(self, name: NumericsName) -> None:
        self.name = name
        self.version = -1
        """Version of the weights held; -1 before the first sync."""
        self._numerics = NUMERICS[name]
        self._weights: dict[str, Tensor] = {}

    def sync(self, policy: Policy, *, version: int) -> None:
        """Copy the policy's weights, rounded to this engine's numerics."""
        self.version = version
        self._weights = {}
        for name, tensor in policy.state_dict().items():
            is_linear = tensor.ndim == 2 and not name.startswith(("token.", "position."))
            copied = tensor.detach().clone().to(self._numerics.dtype)
            self._weights[name] = self._numerics.weight(copied) if is_linear else copied

    @torch.no_grad()
    def sample(self, prompts_BP: Tensor, *, generator: torch.Generator) -> Rollout:
        """Sample one response per prompt at temperature 1, without truncation of the distribution."""
        assert self._weights, "sync before sample"
        B = prompts_BP.shape[0]
        caches = [self._empty_cache(B) for _ in range(LAYERS)]
        tokens, logprobs, masks = [prompts_BP], [], []
        running_B = torch.ones(B, dtype=torch.bool)
        next_input = prompts_BP
        for _ in range(task.MAX_RESPONSE_LENGTH):
            all_BV = functional.log_softmax(self._forward(next_input, caches).float(), dim=-1)
            drawn_B1 = torch.multinomial(all_BV.exp(), 1, generator=generator)
            masks.append(running_B)
            logprobs.append(torch.where(running_B, all_BV.gather(1, drawn_B1)[:, 0], 0.0))
            next_input = torch.where(running_B[:, None], drawn_B1, task.PAD)
            tokens.append(next_input)
            running_B = running_B & (drawn_B1[:, 0] != task.EOS)
            if not running_B.any():
                break
        return Rollout(
            tokens_BS=torch.cat(tokens, dim=1),
            infer_logprobs_BT=torch.stack(logprobs, dim=1),
            mask_BT=torch.stack(masks, dim=1),
            version=self.version,
        )

    def _empty_cache(self, B: int) -> _Cache:
        shape = split_heads(torch.empty(B, POSITIONS, self._weights["token.weight"].shape[1])).shape
        return _Cache(torch.zeros(shape, dtype=self._numerics.dtype), torch.zeros(shape, dtype=self._numerics.dtype))

    def _forward(self, tokens_BS: Tensor, caches: list[_Cache]) -> Tensor:
        """Logits [B, V] of the token after the last one given; appends to the caches."""
        start = caches[0].length
        position = self._weights["position.weight"][start : start + tokens_BS.shape[1]]
        x_BSD = self._weights["token.weight"][tokens_BS] + position
        for layer, cache in enumerate(caches):
            prefix = f"blocks.{layer}"
            h_BSD = self._norm(x_BSD, f"{prefix}.attention_norm")
            query, key, value = (
                split_heads(self._linear(h_BSD, f"{prefix}.{name}")) for name in ("query", "key", "value")
            )
            keys, values = cache.append(key, value)
            # The prompt goes through in one causal call; afterwards one query sees all that is cached.
            mixed = functional.scaled_dot_product_attention(query, keys, values, is_causal=start == 0)
            x_BSD = x_BSD + self._linear(join_heads(mixed), f"{prefix}.output")
            hidden = functional.gelu(self._linear(self._norm(x_BSD, f"{prefix}.mlp_norm"), f"{prefix}.up"))
            x_BSD = x_BSD + self._linear(hidden, f"{prefix}.down")
        return self._linear(self._norm(x_BSD[:, -1], "norm"), "head")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(self._numerics.activation(x), self._weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return functional.rms_norm(x, (x.shape[-1],), weight, NORM_EPS)
