"""Where the noise gets in: forward pre-hooks on the decoder layers, inert outside the context, and how a checkpoint's
recompute finds the noise of its forward.

A hook on a layer runs before the layer's own code, so it sees the state before the residual copy and the norm. Where
checkpointing re-runs the hook during backward, the context may be over, or already be that of the next micro-batch:
each input seen by a hook is therefore remembered by the identity of its storage (weakly), with the noise it was given.
An input that was moved in between (offloaded, or cast by a wrapper) is unknown then: it gets what the forwards since
the layer's last recompute were given, and where these differ the recompute is refused, since a wrong one would be a
wrong gradient and nobody would see it. A copy or a pickle of the model carries hooks that do nothing.

Shapes: L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from tailwatch_alp.errors import HiddenStateError, RecomputeError
from tailwatch_alp.noise import perturb
from tailwatch_alp.scale import Scale

_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_NAMES = ("hidden_states", "hidden", "x", "src", "tgt", "input", "inputs")
_LEDGER_LIMIT = 4096


@dataclass(eq=False, kw_only=True)  # no slots: older compilers cannot look into them
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

    def step_aside(self, module: nn.Module) -> None:
        """A hook had nothing to do, and the layer's own code comes next."""


class Ledger:
    """Which noise each input of each layer was given; None: it was left clean."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], tuple[StorageWeakRef, Noise | _Ambiguous | None]] = {}
        self._limit = _LEDGER_LIMIT
        self._pending: dict[int, _Pending] = {}
        self._settled: set[int] = set()

    def remember(self, layer: int, hidden: Tensor, *, given: Noise | None) -> None:
        """Note what the layer did with this input."""
        key, reference = _identity(layer, hidden)
        known = self._entries.get(key)
        same = known is None or known[1] is given
        self._entries[key] = (reference, given if same else _Ambiguous())
        if len(self._entries) > self._limit:
            self.prune()
            self._limit = max(_LEDGER_LIMIT, 2 * len(self._entries))  # many that live must not mean a scan each time
        self._note_pending(layer, given=given)

    def recall(self, layer: int, hidden: Tensor) -> Noise | None:
        """What the layer's forward did with this input.

        Raises:
            RecomputeError: two forwards had the same input and different noise, or the input was never seen and the
                forwards since the last recompute had different noise.
        """
        self._settled.add(layer)
        known = self._entries.get(_identity(layer, hidden)[0])
        if known is not None and isinstance(known[1], _Ambiguous):
            raise RecomputeError(
                f"layer {layer} got the same tensor in two forwards with different noise, so the recompute of either "
                f"cannot be told apart: call backward before the second forward, or give each its own inputs_embeds"
            )
        given = self._pending.get(layer, _NOTHING).given if known is None else known[1]
        if isinstance(given, _Ambiguous):
            raise RecomputeError(
                f"a checkpoint recomputes layer {layer} from an input that was moved since its forward (offloaded, or "
                f"cast), and several forwards with different noise wait for their backward: call backward after each"
            )
        return given

    def prune(self) -> None:
        """Forget inputs that no longer exist."""
        self._entries = {key: entry for key, entry in self._entries.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]

    def _note_pending(self, layer: int, *, given: Noise | None) -> None:
        if layer in self._settled:
            self._settled.discard(layer)
            self._pending.pop(layer, None)
        # A clean forward without a graph has no recompute, but for the reentrant kind, which hides its graph: it counts
        # only while nothing else does.
        weak = given is None and not torch.is_grad_enabled()
        known = self._pending.get(layer, _NOTHING)
        if known.weak:
            self._pending[layer] = _Pending(given, weak)
        elif not weak and known.given is not given:
            self._pending[layer] = _Pending(_Ambiguous(), weak=False)

    def __len__(self) -> int:
        return len(self._entries)


class _Ambiguous:
    """Stands where forwards that cannot be told apart had different noise."""


class _Pending(NamedTuple):
    """What the forwards of a layer that may still be recomputed were given."""

    given: Noise | _Ambiguous | None
    weak: bool


_NOTHING = _Pending(None, weak=True)


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

    def idle(self, module: nn.Module) -> bool:
        """Whether there is nothing to do and nothing to remember: outside the context, no graph being built. In
        training mode one may be built without being seen, by reentrant checkpointing."""
        if self.owner.current is not None:
            return False
        if torch.compiler.is_compiling():
            return True
        return not torch.is_grad_enabled() and (not module.training or torch.is_inference_mode_enabled())

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
            return owner.ledger.recall(self.layer, hidden)
        given = None if owner.current is None else owner.noise_for(self.layer)
        owner.ledger.remember(self.layer, hidden, given=given)
        return given


class LayerHook(_Hook):
    """Forward pre-hook: noise on a layer's input."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with noise on the hidden state; None: unchanged."""
        if self.idle(module):
            if not torch.compiler.is_compiling():
                self.owner.step_aside(module)
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

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG002
        """The output with noise; None: unchanged."""
        if self.idle(module):
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
    if hidden.is_nested:
        raise HiddenStateError(f"{where} receives a nested tensor: pass its values, packed into one row")
    if not torch.compiler.is_compiling() and hasattr(hidden, "to_local"):
        raise HiddenStateError(f"{where} receives a DTensor: have its inputs made local (use_local_output=True)")
    if hidden.dim() < 2:
        raise HiddenStateError(f"{where} receives a tensor of shape {tuple(hidden.shape)}: expected [..., hidden]")
