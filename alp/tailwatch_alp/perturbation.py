"""Perturbation: noise on the hidden states of a model, on inside a context and provably off outside it.

    perturbation = Perturbation(model, sigma=0.1, seed=17)
    with perturbation.active(step=step, micro_batch=index):
        logits = model(input_ids).logits

The model is not replaced, wrapped or given parameters: hooks on its layers ask this object whether noise is on.
Outside the context the forward is bit for bit that of an unpatched model. Works on any model whose decoder layers can
be found (see `layers.py`), under PEFT, DDP, FSDP2, `torch.compile` and both kinds of gradient checkpointing.

Shapes: L layers (1 where the site is the logits).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tailwatch_alp.errors import (
    ActivationError,
    AlreadyAttachedError,
    ModelChangedError,
    NestedActivationError,
    NoEffectError,
    ScaleError,
)
from tailwatch_alp.hooks import HeadHook, LayerHook, Ledger, Noise
from tailwatch_alp.layers import find_head, find_layers, select_layers
from tailwatch_alp.meter import LayerEffect, Meter
from tailwatch_alp.noise import stream_keys
from tailwatch_alp.ranks import data_rank_of
from tailwatch_alp.scale import DEFAULT_BOUNDS, Scale

_STATE_VERSION = 1
_MINIMUM_EFFECT = 0.5  # of the nominal RMS must be left after rounding
_METER_EVERY = 16  # activations
_LOGITS_LAYER = 1 << 32  # no decoder layer has this number, so that noise on the logits shares nothing with theirs
_OWNED: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


class Perturbation:
    """Layerwise Gaussian noise for one model.

    Args:
        model: the model, wrapped or not. Attach before the first compiled call: the compiler looks at hooks only then.
        layers: which layers: "all", "early", "middle", "late", numbers; can be changed later.
        site: "hidden" (the input of each layer) or "logits" (the output of the head).
        sigma: strength, one or one per layer.
        relative: sigma in units of each token's RMS over the hidden size; else absolute.
        learnable: gradients flow to log sigma, see `Scale`.
        bounds: smallest and largest sigma.
        seed: of the run.
        data_rank: number of this rank's data slice: ranks with different data get different noise, ranks that hold the
            same tokens (tensor parallel) must give the same number. None: found out, see `ranks.py`.
        blocks: where the decoder layers are, if they cannot be found: a path or modules.
        head: where the output head is, likewise.

    Raises:
        LayersNotFoundError: no layers or no head; the message lists what was found.
        LayerRangeError: a layer the model does not have.
        ScaleError: sigma not positive, not finite or outside the bounds.
        AlreadyAttachedError: another Perturbation holds these layers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sigma: float | Sequence[float],
        layers: str | int | Iterable[int] = "all",
        site: str = "hidden",
        relative: bool = True,
        learnable: bool = False,
        bounds: tuple[float, float] = DEFAULT_BOUNDS,
        seed: int = 0,
        data_rank: int | None = None,
        blocks: str | Sequence[nn.Module] | None = None,
        head: str | nn.Module | None = None,
    ) -> None:
        if site not in {"hidden", "logits"}:
            raise ActivationError(f"site={site!r}: expected 'hidden' or 'logits'")
        self.model = model
        self.site = site
        self.relative = relative
        self.seed = seed
        self._data_rank = data_rank
        if site == "hidden":
            self._modules = find_layers(model, blocks=blocks).modules
        else:
            self._modules = (find_head(model, head=head),)
        self.device = _device_of(model)
        self.scale = Scale(sigma, count=len(self._modules), bounds=bounds, learnable=learnable, device=self.device)
        self.layers = select_layers(layers, count=len(self._modules))
        self.meter = Meter(layers=len(self._modules))
        self.ledger = Ledger()
        self.current: Noise | None = None
        self._gain = 1.0
        self._forwards: list[Noise] = []
        self._arrivals: list[int] = []
        self._coordinates: dict[str, int] = {}
        self._proven: dict[int, float] = {}
        self._changed = True
        self._activations = 0
        self._handles: list[RemovableHandle] = []
        # torch's fused encoder path is left as soon as a hook exists: there, hooks come with a context and go with the
        # first clean forward in evaluation mode. Not with the context: a checkpoint's recompute may come after it.
        self._permanent = not any(isinstance(module, nn.TransformerEncoderLayer) for module in self._modules)
        self._attach()

    # --- what can be changed between contexts ---------------------------------------------------------------------

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The hooked modules: the decoder layers, or the head."""
        return self._modules

    @property
    def layer_count(self) -> int:
        """Number of layers L of the model, perturbed or not."""
        return len(self._modules)

    @property
    def data_rank(self) -> int:
        """Number of this rank's data slice."""
        if self._data_rank is not None:
            return self._data_rank
        found = data_rank_of(self.model)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._data_rank = found  # not before: process groups may be made after the Perturbation
        return found

    @data_rank.setter
    def data_rank(self, data_rank: int) -> None:
        self._data_rank = data_rank

    @property
    def sigma(self) -> tuple[float, ...]:
        """Sigma of every layer before gain; waits for the device if it is learned."""
        return self.scale.values

    @property
    def gain(self) -> float:
        """Factor on every sigma: 0 is off, 1 is sigma itself."""
        return self._gain

    @gain.setter
    def gain(self, gain: float) -> None:
        if not (math.isfinite(gain) and gain >= 0):
            raise ScaleError(f"gain={gain!r}: expected a finite number >= 0")
        self._changed = self._changed or gain != self._gain
        self._gain = float(gain)

    def set_sigma(self, sigma: float | Sequence[float]) -> None:
        """Set sigma from outside: one, or one per layer of the model.

        Raises:
            ScaleError: not positive, not finite or outside the bounds; the old one stays.
        """
        self.scale.set(sigma)
        self._changed = True
        if self.scale.learnable:
            self._proven.clear()

    def set_layers(self, layers: str | int | Iterable[int]) -> None:
        """Choose other layers; a compiled model is not traced again.

        Raises:
            LayerRangeError: a layer the model does not have; the old choice stays.
        """
        self.layers = select_layers(layers, count=self.layer_count)
        self._changed = True

    # --- the context ----------------------------------------------------------------------------------------------

    @contextmanager
    def active(
        self,
        *,
        step: int,
        micro_batch: int = 0,
        antithetic: bool = False,
        token_index: Tensor | None = None,
    ) -> Iterator[Perturbation]:
        """Forwards inside get noise; outside, the model is clean, also after an exception.

        The first activation, and the first after a change of sigma or layers, is checked on leaving: noise that was
        lost in rounding raises. Backward may come after the context. With a gain of 0 nothing happens at all.

        Args:
            step: training step; a resumed run gets the same noise at the same step.
            micro_batch: number of the forward within the step: two forwards of one step must differ in it, or be in one
                context (a compiled model cannot tell them apart there: give each its context).
            antithetic: the same noise with the opposite sign.
            token_index: one integer per token, in the order of the hidden state's tokens, below 2**32: a token keeps
                its noise wherever it lies. For sequence-parallel slices and to compare packed with padded. None:
                memory order.

        Raises:
            NestedActivationError: the context is already open.
            ActivationError: inside `torch.inference_mode`, where no policy update can be.
            ModelChangedError: layers were replaced, or hooks removed by somebody else.
            NoEffectError: on leaving: the noise changed next to nothing, or no layer ran.
            HiddenStateError: in a forward: a hidden state that cannot carry noise.
        """
        self._check_enterable()
        if self._gain == 0.0:
            yield self
            return
        self._coordinates = {"step": step, "micro_batch": micro_batch}
        self._forwards = [self._make_noise(forward=0, sign=-1.0 if antithetic else 1.0, token_index=token_index)]
        self._arrivals = [0] * self.layer_count
        self.ledger.prune()
        to_prove = self._to_prove()
        self.meter.listening = bool(to_prove) or self._changed or self._activations % _METER_EVERY == 0
        if to_prove or self._changed:
            self.meter.reset()
            self._changed = False
        if not self._permanent:
            self.detach()
            self._attach()
        self.current = self._forwards[0]
        try:
            yield self
        finally:
            self.current = None
        self._activations += 1
        if to_prove:
            self._prove_effect(to_prove)

    @contextmanager
    def probing(self, *, sigma: float, layers: Sequence[int]) -> Iterator[None]:
        """Contexts entered inside have this sigma on these layers; afterwards everything is as before. For probes."""
        if self.current is not None:
            raise NestedActivationError("a probe inside an active context: leave that first")
        scale = Scale(sigma, count=self.layer_count, bounds=(sigma, sigma))
        chosen = select_layers(layers, count=self.layer_count)
        kept = (self.scale, self.layers, self._gain, self._proven, self._changed, self._activations, self.ledger)
        self.scale, self.layers, self._gain, self._proven, self.ledger = scale, chosen, 1.0, {}, Ledger()
        try:
            with self.meter.set_aside():
                yield
        finally:
            self.scale, self.layers, self._gain, self._proven, self._changed, self._activations, self.ledger = kept

    def effect(self) -> list[LayerEffect]:
        """What the noise did to each layer's input, sampled since sigma, gain or the layers last changed. Waits
        for the device once."""
        return self.meter.read()

    def detach(self) -> None:
        """Remove the hooks: the model is as it was before. Twice is once."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._modules:
            if _OWNED.get(module) is self:
                del _OWNED[module]

    # --- resuming -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Seed, sigma, gain and layers: with them, a resumed run has the same noise."""
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "site": self.site,
            "relative": self.relative,
            "layers": list(self.layers),
            "gain": self._gain,
            "scale": self.scale.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ScaleError: it belongs to a model with another number of layers.
            ActivationError: it was made by another version, or for another site or unit of sigma.
        """
        expected = {"version": _STATE_VERSION, "site": self.site, "relative": self.relative}
        for name, value in expected.items():
            if state.get(name) != value:
                raise ActivationError(f"the state has {name}={state.get(name)!r}, this Perturbation {value!r}")
        self.scale.load_state_dict(state["scale"])
        self._proven.clear()
        self.set_layers(state["layers"])
        self.seed = int(state["seed"])
        self.gain = float(state["gain"])

    # --- what the hooks ask ---------------------------------------------------------------------------------------

    def noise_for(self, layer: int) -> Noise:
        """Inside the context: the noise of the forward that reaches this layer now."""
        forward = self._arrivals[layer]
        self._arrivals[layer] += 1
        while len(self._forwards) <= forward:
            first = self._forwards[0]
            self._forwards.append(
                Noise(
                    scale=first.scale,
                    switched_on=first.switched_on,
                    gain_L=first.gain_L,
                    keys_L2=self._keys(forward=len(self._forwards)),
                    token_index=first.token_index,
                    relative=first.relative,
                    meter=first.meter,
                )
            )
        return self._forwards[forward]

    def step_aside(self, module: nn.Module) -> None:
        """A hook had nothing to do: where hooks cost a layer its fused path, which evaluation has, they go."""
        if not self._permanent and not module.training:
            self.detach()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _make_noise(self, *, forward: int, sign: float, token_index: Tensor | None) -> Noise:
        self.scale.project()
        device = _device_of(self.model)
        switched_on = tuple(layer in self.layers for layer in range(self.layer_count))
        # A new tensor each time: backward of an earlier forward may still need the old one.
        gain_L = self.scale.gains(switched_on, gain=sign * self._gain)
        return Noise(
            scale=self.scale,
            switched_on=switched_on,
            gain_L=gain_L.to(device, non_blocking=True),
            keys_L2=self._keys(forward=forward),
            token_index=token_index,
            relative=self.relative,
            meter=self.meter.handle,
        )

    def _keys(self, *, forward: int) -> Tensor:
        keys_L2 = stream_keys(
            seed=self.seed,
            step=self._coordinates["step"],
            micro_batch=self._coordinates["micro_batch"],
            forward=forward,
            data_rank=self.data_rank,
            layers=self.layer_count,
            first_layer=0 if self.site == "hidden" else _LOGITS_LAYER,
        )
        return keys_L2.to(_device_of(self.model), non_blocking=True)

    def _check_enterable(self) -> None:
        if self.current is not None:
            raise NestedActivationError(
                f"the context is already open (step {self._coordinates['step']}, micro-batch "
                f"{self._coordinates['micro_batch']}): leave it before entering another"
            )
        if torch.is_inference_mode_enabled():
            raise ActivationError("noise inside torch.inference_mode: use torch.no_grad for a probe")
        if self._permanent:
            self._check_attached()

    def _check_attached(self) -> None:
        alive = {id(module) for module in self.model.modules()}
        for layer, (module, handle) in enumerate(zip(self._modules, self._handles, strict=False)):
            if id(module) not in alive:
                raise ModelChangedError(
                    f"layer {layer} ({type(module).__name__}) is no longer part of the model: call detach() and make a "
                    f"new Perturbation after the model is final"
                )
            hooks: Mapping[int, Any] | None = handle.hooks_dict_ref()
            if hooks is None or handle.id not in hooks:
                raise ModelChangedError(
                    f"the hook of layer {layer} was removed by somebody else: call detach() and make a new Perturbation"
                )
        if not self._handles:
            raise ModelChangedError("this Perturbation was detached: make a new one")

    def _attach(self) -> None:
        for layer, module in enumerate(self._modules):
            if _OWNED.setdefault(module, self) is not self:
                self.detach()
                raise AlreadyAttachedError(
                    f"layer {layer} ({type(module).__name__}) already has a Perturbation: change that one (set_sigma, "
                    f"set_layers), or detach() it first"
                )
            if self.site == "hidden":
                handle = module.register_forward_pre_hook(LayerHook(self, layer), with_kwargs=True)
            else:
                handle = module.register_forward_hook(HeadHook(self, layer))
            self._handles.append(handle)

    def _to_prove(self) -> dict[int, float]:
        """The layers whose noise has not been seen to survive rounding, at this strength or less, with the strength."""
        if self.scale.learnable:  # reading it would wait for the device: a learned sigma is checked at the start
            return {layer: 0.0 for layer in self.layers if layer not in self._proven}
        strengths = {layer: self._gain * self.scale.values[layer] for layer in self.layers}
        return {layer: value for layer, value in strengths.items() if value < self._proven.get(layer, math.inf)}

    def _prove_effect(self, to_prove: Mapping[int, float]) -> None:
        effects = {effect.layer: effect for effect in self.meter.read()}
        silent = [layer for layer in to_prove if layer not in effects]
        if silent:
            raise NoEffectError(
                f"layers {silent} never ran inside the context: no forward was made, or the model goes past the "
                f"modules that were hooked (a fused kernel that reads their weights)"
            )
        for layer in to_prove:
            effect = effects[layer]
            if not effect.realised_over_nominal >= _MINIMUM_EFFECT:
                raise NoEffectError(
                    f"layer {layer}: only {effect.changed_share:.2%} of the entries changed and "
                    f"{effect.realised_over_nominal:.1%} of the noise survived rounding; sigma={self.sigma[layer]:g} "
                    f"is too small for this dtype: raise it, or leave the noise off"
                )
        self._proven.update(to_prove)


def _device_of(model: nn.Module) -> torch.device:
    """Where the model is; the CPU while it is nowhere yet."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
