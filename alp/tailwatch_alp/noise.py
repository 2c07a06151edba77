"""Gaussian noise that is a function of its place and of nothing else, added to a hidden state by one torch operator.

A normal is computed from (seed, step, micro-batch, forward, rank's data slice, layer, token index, feature) by integer
hashing, so there is no generator state: the same place gives the same number in forward, in a checkpoint's recompute,
after a resume and on every tensor-parallel replica, whatever the chunking or the padding; another place another one.
The hash is 32-bit, two rounds of a multiply-xorshift finaliser with a 64-bit key per token; Box-Muller turns two hashes
into two normals (largest: 6.6). The operator is opaque to `torch.compile`, so a compiled model draws the same bits.
It adds in float32, casts back, keeps no activation for backward, and draws the noise again for the gradient of sigma.

Shapes: N tokens, D hidden size, L layers. A key is two int32; `reference.py` has the same function with Python ints.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tailwatch_alp.errors import KeyRangeError
from tailwatch_alp.meter import meter_of

_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)  # C. Wellons, hash prospector: bias 0.11 with shifts 16, 15, 15
_MASK64 = (1 << 64) - 1
_CPU_CHUNK = 1 << 16  # entries: the buffers of one chunk fit the second-level cache
_DEVICE_CHUNK = 1 << 23  # entries, where no fused kernel is at hand


# --- keys: Python integers, once per activation -------------------------------------------------------------------


def stream_keys(
    *, seed: int, step: int, micro_batch: int, forward: int, data_rank: int, layers: int, first_layer: int = 0
) -> Tensor:
    """The keys [L, 2] int32 of one forward, one row per layer, on the CPU.

    Raises:
        KeyRangeError: a number that is negative, of more than 64 bits, or no integer.
    """
    fields = {"seed": seed, "step": step, "micro_batch": micro_batch, "forward": forward, "data_rank": data_rank}
    numbers = [_checked(value, name=name) for name, value in fields.items()]
    prefix = functools.reduce(_absorb, numbers, 0)
    words = [_absorb(prefix, first_layer + layer) for layer in range(layers)]
    return torch.tensor([[_signed(word), _signed(word >> 32)] for word in words], dtype=torch.int32)


def _checked(value: int, *, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise KeyRangeError(f"{name}={value!r}: expected an integer") from None
    if not 0 <= number <= _MASK64:
        raise KeyRangeError(f"{name}={value!r}: expected an integer from 0 to 2**64 - 1")
    return number


def _absorb(state: int, value: int) -> int:
    """One step of a 64-bit chain: add the golden ratio and the value, then finalise as splitmix64 does."""
    x = (state * 3 + value + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _signed(word: int) -> int:
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


# --- normals ------------------------------------------------------------------------------------------------------


def mix(x: Tensor, *, scratch: Tensor | None = None) -> Tensor:
    """Finalise int32 values in place: every output bit depends on every input bit. Multiplication wraps."""
    scratch = torch.empty_like(x) if scratch is None else scratch
    for shift, multiplier in ((16, _MULTIPLIERS[0]), (15, _MULTIPLIERS[1]), (15, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))  # int32 shifts carry the sign: mask it off
        if multiplier is not None:
            x.mul_(multiplier)
    return x


def token_keys(key: Tensor, *, index_N: Tensor) -> tuple[Tensor, Tensor]:
    """Two int32 keys [N] per token from a stream's key [2] and the token's index."""
    low_N = ((index_N & 0xFFFFFFFF) ^ 0x80000000).sub(0x80000000).to(torch.int32)
    first_N = mix(mix(low_N + key[0]) ^ key[1])
    second_N = mix(mix(low_N ^ key[1]) + key[0])
    return first_N, second_N


def normals(first_N: Tensor, second_N: Tensor, *, features: int) -> Tensor:
    """Standard normals [N, D] float32 of tokens with these keys."""
    half = -(-features // 2)
    if torch.compiler.is_compiling():  # inside the fused kernel: every entry by itself, so that none has to be stored
        feature = torch.arange(features, dtype=torch.int32, device=first_N.device)
        column = torch.where(feature < half, feature, feature - half)
        radius, angle = (_hash(column + start, first_N, second_N) for start in (0, half))
        return _radius(radius) * torch.where(feature < half, _angle(angle).cos(), _angle(angle).sin())
    x = _hash(torch.arange(2 * half, dtype=torch.int32, device=first_N.device), first_N, second_N)
    radius, angle = _radius(x[:, :half]), _angle(x[:, half:])
    z = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    torch.mul(radius, angle.cos(), out=z[:, :half])
    torch.mul(radius, angle.sin_(), out=z[:, half:])
    return z[:, :features]


def _hash(counter_D: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    x = counter_D + first_N[:, None]
    scratch = torch.empty_like(x)
    mix(x, scratch=scratch)
    x.bitwise_xor_(second_N[:, None])
    return mix(x, scratch=scratch)


def _radius(bits: Tensor) -> Tensor:
    """sqrt(-2 log u), u in (0, 1]."""
    uniform = bits.bitwise_and(0x7FFFFFFF).to(torch.float32).add_(1.0).mul_(2.0**-31)
    return uniform.log_().mul_(-2.0).sqrt_()


def _angle(bits: Tensor) -> Tensor:
    """Uniform over [-pi, pi)."""
    return bits.to(torch.float32).mul_(math.pi * 2.0**-31)


def draw(key: Tensor, *, tokens: int, features: int, token_index: Tensor | None = None) -> Tensor:
    """The standard normals [N, D] float32 the operator uses for a stream's key [2]; for inspection."""
    index_N = _index(token_index, tokens=tokens, device=key.device)
    return normals(*token_keys(key, index_N=index_N), features=features)


def _index(token_index: Tensor | None, *, tokens: int, device: torch.device) -> Tensor:
    if token_index is None:
        return torch.arange(tokens, device=device)
    if token_index.numel() != tokens or token_index.is_floating_point():
        raise KeyRangeError(
            f"token_index is {token_index.dtype} of shape {tuple(token_index.shape)} for {tokens} tokens: expected one "
            f"integer per token"
        )
    return token_index.reshape(-1).to(device=device, dtype=torch.int64)


# --- the operator -------------------------------------------------------------------------------------------------


def _perturb_rows(
    flat_ND: Tensor, coefficient: Tensor, first_N: Tensor, second_N: Tensor, relative: bool
) -> tuple[Tensor, Tensor]:
    compute_ND = flat_ND.to(torch.promote_types(flat_ND.dtype, torch.float32))
    rms_N = compute_ND.square().mean(-1).sqrt() if relative else torch.ones_like(compute_ND[:, 0])
    z_ND = normals(first_N, second_N, features=flat_ND.shape[1])
    added_ND = torch.addcmul(compute_ND, z_ND.to(compute_ND.dtype), (coefficient * rms_N)[:, None])
    # A coefficient of 0 leaves the bits alone; adding 0 would turn -0 into 0.
    return torch.where(coefficient == 0, flat_ND, added_ND.to(flat_ND.dtype)), rms_N.to(torch.float32)


def _dot_rows(grad_ND: Tensor, rms_N: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    z_ND = normals(first_N, second_N, features=grad_ND.shape[1])
    dots_N = (grad_ND.to(torch.float32) * z_ND).sum(-1)
    return (dots_N * rms_N).sum()  # not a matrix product: autocast would round it to half precision


@functools.cache
def _kernel(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """The function fused by the compiler on an accelerator that has one; as it is elsewhere."""
    if device_type == "cpu" or importlib.util.find_spec("triton") is None:
        return function
    return torch.compile(function, dynamic=True)


def _chunk_rows(tensor: Tensor) -> int:
    """Tokens per pass: bounds the scratch memory. All of them where one fused kernel needs none."""
    if tensor.device.type == "cpu":
        return max(1, _CPU_CHUNK // tensor.shape[1])
    fused = importlib.util.find_spec("triton") is not None
    return max(1, tensor.shape[0] if fused else _DEVICE_CHUNK // tensor.shape[1])


# Schemas are written out: torch 2.4 cannot read annotations that are strings.
@torch.library.custom_op(
    "tailwatch_alp::perturb",
    mutates_args=(),
    schema="(Tensor hidden, Tensor coefficient, Tensor key, Tensor? token_index, bool relative, SymInt meter,"
    " SymInt layer) -> (Tensor, Tensor)",
)
def perturb(
    hidden: Tensor,
    coefficient: Tensor,
    key: Tensor,
    token_index: Tensor | None,
    relative: bool,
    meter: int,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """hidden + coefficient * RMS(hidden) * z, and the RMS.

    Args:
        hidden: [..., D] floating point.
        coefficient: scalar float32, sigma with its sign; differentiable.
        key: [2] int32, the stream's key.
        token_index: one integer per token (mod 2**32); None: 0, 1, ... in memory order.
        relative: scale by each token's RMS over D (held constant in backward); else the coefficient is absolute.
        meter: handle of the meter that samples the effect; 0: none.
        layer: row of that meter.

    Returns:
        The perturbed state in hidden's shape and dtype, and the RMS [N] float32 (ones if absolute).
    """
    flat_ND = hidden.reshape(-1, hidden.shape[-1])
    tokens = flat_ND.shape[0]
    rms_N = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    if hidden.device.type == "cpu" and coefficient.item() == 0.0:
        # An RMS of 0, not NaN: nothing flows to the sigma of a layer that is off.
        return hidden.clone(memory_format=torch.contiguous_format), rms_N.zero_()
    out_ND = torch.empty_like(flat_ND, memory_format=torch.contiguous_format)
    first_N, second_N = token_keys(key, index_N=_index(token_index, tokens=tokens, device=hidden.device))
    kernel, size = _kernel(_perturb_rows, hidden.device.type), _chunk_rows(flat_ND)
    for start in range(0, tokens, size):
        rows = slice(start, start + size)
        out_ND[rows], rms_N[rows] = kernel(flat_ND[rows], coefficient, first_N[rows], second_N[rows], relative)
    listener = meter_of(meter)
    if listener is not None:
        listener.observe(layer=layer, before_ND=flat_ND, after_ND=out_ND, nominal_N=coefficient.detach() * rms_N)
    return out_ND.view(hidden.shape), rms_N


@perturb.register_fake
def _(hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    tokens = hidden.numel() // hidden.shape[-1]
    rms_N = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    return torch.empty_like(hidden, memory_format=torch.contiguous_format), rms_N


@torch.library.custom_op(
    "tailwatch_alp::noise_dot",
    mutates_args=(),
    schema="(Tensor grad, Tensor rms, Tensor key, Tensor? token_index) -> Tensor",
)
def noise_dot(grad: Tensor, rms: Tensor, key: Tensor, token_index: Tensor | None) -> Tensor:
    """Sum over tokens and features of grad * RMS * z: the gradient of the coefficient, a float32 scalar; 0 if that is
    not finite."""
    grad_ND = grad.reshape(-1, grad.shape[-1])
    tokens = grad_ND.shape[0]
    first_N, second_N = token_keys(key, index_N=_index(token_index, tokens=tokens, device=grad.device))
    kernel, size = _kernel(_dot_rows, grad.device.type), _chunk_rows(grad_ND)
    total = torch.zeros((), dtype=torch.float32, device=grad.device)
    for start in range(0, tokens, size):
        rows = slice(start, start + size)
        total += kernel(grad_ND[rows], rms[rows], first_N[rows], second_N[rows])
    # A trainer skips the step of a batch that overflowed. Sigma's own optimiser does not know of that, and one NaN in
    # its averages would stay for ever.
    return total.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@noise_dot.register_fake
def _(grad: Tensor, *_: Any) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=grad.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, coefficient, key, token_index, *_ = inputs
    ctx.learned = coefficient.requires_grad
    if ctx.learned:  # a fixed sigma needs nothing: backward is the identity
        ctx.save_for_backward(output[1], key, token_index)


def _backward(ctx: Any, grad: Tensor, grad_rms: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ARG001
    grad_coefficient = None
    if ctx.learned:
        rms_N, key, token_index = ctx.saved_tensors
        grad_coefficient = noise_dot(grad, rms_N, key, token_index)
    return grad, grad_coefficient, None, None, None, None, None


torch.library.register_autograd("tailwatch_alp::perturb", _backward, setup_context=_setup_context)
