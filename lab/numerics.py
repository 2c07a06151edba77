"""Numerics: the arithmetics an inference engine may have, as real roundings of weights and activations.

`fp8` casts both to float8_e4m3fn and back, `int*` round the weights to a symmetric grid with one scale per row (8
bits) or per 16 weights (fewer bits), `bf16` stores and computes in bfloat16 throughout. Embeddings, norms and the
attention products keep the engine's dtype, as they do in serving engines.

Shapes: O outputs, I inputs of a linear layer; `...` leading axes of activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

NumericsName = Literal["fp32", "bf16", "fp8", "int8", "int6", "int5", "int4", "int3"]
NUMERICS_NAMES: tuple[NumericsName, ...] = get_args(NumericsName)

_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
_GROUP = 16


def unchanged(x: Tensor) -> Tensor:
    """No rounding."""
    return x


def round_fp8(x: Tensor) -> Tensor:
    """[..., I] through float8_e4m3fn and back, scaled so that the largest of each row is the largest float8."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / _FP8_MAX
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


def round_int(weight_OI: Tensor, *, bits: int) -> Tensor:
    """Weights on a symmetric grid of 2^bits - 1 levels, one scale per row at 8 bits, per 16 weights below."""
    grouped = weight_OI if bits >= 8 else weight_OI.view(len(weight_OI), -1, _GROUP)
    largest_level = 2 ** (bits - 1) - 1
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12) / largest_level
    rounded: Tensor = (grouped / scale).round() * scale
    return rounded.reshape(weight_OI.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """How an engine stores its weights and feeds its linear layers."""

    dtype: torch.dtype = torch.float32
    """Storage and compute type."""
    weight: Callable[[Tensor], Tensor] = unchanged
    """Rounding of a linear layer's weight [O, I], applied once at every sync."""
    activation: Callable[[Tensor], Tensor] = unchanged
    """Rounding of a linear layer's input [..., I], applied at every call."""


NUMERICS: dict[NumericsName, Numerics] = {
    "fp32": Numerics(),
    "bf16": Numerics(dtype=torch.bfloat16),
    "fp8": Numerics(weight=round_fp8, activation=round_fp8),
    "int8": Numerics(weight=partial(round_int, bits=8)),
    "int6": Numerics(weight=partial(round_int, bits=6)),
    "int5": Numerics(weight=partial(round_int, bits=5)),
    "int4": Numerics(weight=partial(round_int, bits=4)),
    "int3": Numerics(weight=partial(round_int, bits=3)),
}
