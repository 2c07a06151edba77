"""Where the noise gets in: forward pre-hooks on the decoder layers, inert outside the context, and how a checkpoint's
recompute finds the noise of its forward.

A hook on a layer runs before the layer's own code, so it sees the state before the residual copy and the norm. Where
checkpointing re-runs the hook during backward, the context may be over, or already be that of the next micro-batch:
each input seen by a hook is therefore remembered by the identity of its storage (weakly), with the activation it was
given. A copy or a pickle of the model carries hooks that do nothing.

Shapes: L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tailwatch_alp.errors import HiddenStateError, RecomputeError
from tailwatch_alp.noise import perturb
from tailwatch_alp.scale import Scale

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_NAMES = ("hidden_states", "hidden", "x", "src", "tgt", "input", "inputs")
_LEDGER_LIMIT = 4096


@dataclass(eq=False, slots=True, kw_only=True)
class Noise:
    """Everything that decides the noise of one forward."""

    scale: Scale
    """Sigma."""
    switched_on: tuple[bool, ...]
    """Per layer, whether it gets noise."""
    gain_L: Tensor
    """[L] float32, see `Scale.gains`."""
    keys_L2: Tensor
    """[L, 2] int32, see `noise.stream_keys`."""
    token_index: Tensor | None
    """One integer per token; None: memory order."""
    relative: bool
    """Whether sigma is relative to the RMS of the state."""
    meter: int
    """Handle of the meter."""


class Owner(Protocol):
    """What a hook asks: which noise is on."""

    current: Noise | None
    """The noise of the context's first forward; None: outside a context."""
    ledger: Ledger
    """What earlier forwards were given."""

    def noise_for(self, layer: int) -> Noise:
        """Inside the context: the noise of the forward that reaches this layer now."""

    def noise_for_unknown(self, layer: int) -> Noise | None:
        """The noise of a recompute whose input the ledger does not know."""


class Ledger:
    """Which activation each input of each layer was given; None: it was left clean."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], tuple[StorageWeakRef, Noise | _Ambiguous | None]] = {}

    def remember(self, layer: int, hidden: Tensor, *, given: Noise | None) -> None:
        """Note what the layer did with this input."""
        key, reference = _identity(layer, hidden)
        known = self._entries.get(key)
        same = known is None or known[1] is given
        self._entries[key] = (reference, given if same else _Ambiguous())
        if len(self._entries) > _LEDGER_LIMIT:
            self.prune()

    def recall(self, layer: int, hidden: Tensor, *, unknown: Callable[[int], Noise | None]) -> Noise | None:
        """What the layer's forward did with this input; `unknown` answers for one that was never seen.

        Raises:
            RecomputeError: two forwards had the same input and different noise.
        """
        known = self._entries.get(_identity(layer, hidden)[0])
        given = unknown(layer) if known is None else known[1]
        if isinstance(given, _Ambiguous):
            raise RecomputeError(
                f"layer {layer} got the same tensor in two forwards with different noise, so the recompute of either "
                f"cannot be told apart: call backward before the second forward, or give each its own inputs_embeds"
            )
        return given

    def prune(self) -> None:
        """Forget inputs that no longer exist."""
        self._entries = {key: entry for key, entry in self._entries.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._entries)


class _Ambiguous:
    """Stands where two forwards gave one input different noise."""


def _identity(layer: int, hidden: Tensor) -> tuple[tuple[int, ...], StorageWeakRef]:
    # The weak reference keeps the storage's address from being used again, so an entry cannot meet a stranger.
    reference = StorageWeakRef(hidden.untyped_storage())  # type: ignore[no-untyped-call]
    return (layer, reference.cdata, hidden.storage_offset(), *hidden.shape), reference


class _Hook:
    """Common to both sites: finds the noise that applies, and puts it on a state."""

    def __init__(self, owner: Owner, layer: int) -> None:
        self.owner = owner
        self.layer = layer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return inert

    def __reduce__(self) -> str | tuple[Any, ...]:
        return _make_inert, ()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to remember: outside the context, no graph being built."""
        return self.owner.current is None and (torch.compiler.is_compiling() or not torch.is_grad_enabled())

    def noisy(self, hidden: Tensor) -> Tensor | None:
        """The state with its noise; None: it stays as it is."""
        noise = self._noise(hidden)
        if noise is None:
            return None
        if not torch.compiler.is_compiling() and not noise.switched_on[self.layer]:
            return None  # a compiled graph keeps the operator, with a coefficient of 0: no new trace when layers change
        device = hidden.device
        return perturb(  # type: ignore[no-any-return]
            hidden,
            noise.scale.coefficient(self.layer, noise.gain_L.to(device)),
            noise.keys_L2.to(device)[self.layer],
            noise.token_index,
            noise.relative,
            noise.meter,
            self.layer,
        )[0]

    def _noise(self, hidden: Tensor) -> Noise | None:
        owner = self.owner
        if torch.compiler.is_compiling():
            return owner.current
        if torch._C._current_graph_task_id() != -1:  # inside backward: a checkpoint's recompute
            return owner.ledger.recall(self.layer, hidden, unknown=owner.noise_for_unknown)
        given = None if owner.current is None else owner.noise_for(self.layer)
        owner.ledger.remember(self.layer, hidden, given=given)
        return given


class LayerHook(_Hook):
    """Forward pre-hook: noise on a layer's input."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with noise on the hidden state; None: unchanged."""
        if self.idle:
            return None
        place = hidden_place(args, kwargs)
        hidden = None if place is None else (args[place] if isinstance(place, int) else kwargs[place])
        if self.owner.current is not None:
            check_hidden(hidden, module=module)
        noisy = self.noisy(hidden) if isinstance(hidden, Tensor) else None
        if noisy is None:
            return None
        if isinstance(place, int):
            return (*args[:place], noisy, *args[place + 1 :]), kwargs
        return args, {**kwargs, str(place): noisy}


class HeadHook(_Hook):
    """Forward hook: noise on the logits."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002 — torch's signature
        """The output with noise; None: unchanged."""
        if self.idle:
            return None
        if self.owner.current is not None:
            check_hidden(output, module=module)
        return self.noisy(output) if isinstance(output, Tensor) else None


def inert(*_: Any) -> None:
    """What stands in a copy of the model: a hook that does nothing."""


def _make_inert() -> Any:
    return inert


def hidden_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Where a layer's hidden state is: a position, or a name; None: it was given no tensor."""
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            return position
    for name in _NAMES:
        if isinstance(kwargs.get(name), Tensor):
            return name
    return None


def check_hidden(hidden: Any, *, module: nn.Module) -> None:
    """Refuse what cannot carry noise.

    Raises:
        HiddenStateError: no tensor, an integer or quantised one, a sharded one, or one without a feature axis.
    """
    where = type(module).__name__
    if not isinstance(hidden, Tensor):
        raise HiddenStateError(f"{where} has no hidden state to perturb: got {type(hidden).__name__}")
    if hidden.dtype not in _FLOATS:
        raise HiddenStateError(
            f"{where} works on {hidden.dtype}, which cannot carry noise: expected float32, bfloat16, float16 or "
            f"float64. Leave this layer out (layers=...), or perturb the model before it is quantised."
        )
    if hasattr(hidden, "to_local"):
        raise HiddenStateError(f"{where} receives a DTensor: have its inputs made local (use_local_output=True)")
    if hidden.dim() < 2:
        raise HiddenStateError(f"{where} receives a tensor of shape {tuple(hidden.shape)}: expected [..., hidden]")
