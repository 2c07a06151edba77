"""Carries out directives: on all ranks at the same step, and back to off by itself when no new one comes.

    actuator = Actuator(perturbation, source=lambda: collector.directive)
    for step in ...:
        setting = actuator.step(step)              # on every rank
        with actuator.active(step=step, micro_batch=index):
            loss = ...

Rank 0 asks the source and broadcasts what it says; every rank parses the same bytes and so takes the same decision.
An ill-formed, old or outdated directive is refused and counted; the last good one goes on. A directive that is not
renewed expires: the noise then falls linearly to nothing. Noise without an effect on one rank ends on all ranks.
Nothing a service says or fails to say raises here.

    OFF --directive--> as directed --expired--> decaying --> OFF
                           \\--noise without effect, model changed--> OFF until a newer directive
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailwatch_alp.directive import Directive
from tailwatch_alp.errors import (
    AlpError,
    DirectiveError,
    LayerRangeError,
    LayersNotFoundError,
    ModelChangedError,
    NoEffectError,
)
from tailwatch_alp.layers import select_layers
from tailwatch_alp.perturbation import Perturbation

_MESSAGE_BYTES = 8192

Source = Callable[[], Mapping[str, Any] | None]
"""Gives the last known directive as decoded JSON, or None; never waits (`Collector.directive`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What holds at a step, the same on every rank."""

    step: int
    """The step."""
    state: str
    """As directed, "decay" while falling to off, or "off"."""
    strength: float
    """Sigma in force; 0: no noise."""
    layers: tuple[int, ...]
    """Layers that get it."""
    clip: tuple[float, float] | None
    """Clip that goes with it; None: the trainer's own."""
    version: int | None
    """Version of the directive in force; None: there is none."""
    reason: str
    """Why it is so, for the log."""


class Actuator:
    """Keeps one Perturbation as the service directs. It starts off.

    Args:
        perturbation: what is switched; its sigma, layers and gain belong to the actuator from now on.
        source: asked on rank 0 at every step.
        group: process group whose ranks switch together; None: the default one.
        decay_steps: how many steps the way to off takes after a directive expired.
    """

    def __init__(self, perturbation: Perturbation, *, source: Source, group: Any = None, decay_steps: int = 10) -> None:
        self.perturbation = perturbation
        self.refused = 0
        self.last_refusal: str | None = None
        self._source = source
        self._group = group
        self._decay_steps = max(1, decay_steps)
        self._current: Directive | None = None
        self._pending: Directive | None = None
        self._seen = -1
        self._failed_version: int | None = None
        self.last_failure: str | None = None
        self._failed = False
        self._set: float | None = None
        perturbation.gain = 0.0

    def step(self, step: int) -> Setting:
        """Take over what the service says and apply what holds at this step. To be called on every rank of the group,
        at the start of each step: it is one small collective."""
        message, failed = self._exchange()
        if failed and self._current is not None:
            self._failed_version = self._current.version
        self._receive(message, step=step)
        if self._pending is not None and step >= self._pending.apply_from_step:
            self._current, self._pending = self._pending, None
        setting = self._setting(step)
        self._apply(setting)
        return setting

    @contextmanager
    def active(self, *, step: int, micro_batch: int = 0, token_index: Tensor | None = None) -> Iterator[None]:
        """`Perturbation.active`, but noise that has no effect, or no place any more, ends the noise and not the run."""
        noise = self.perturbation.active(step=step, micro_batch=micro_batch, token_index=token_index)
        try:
            with ExitStack() as stack:
                try:
                    stack.enter_context(noise)
                except ModelChangedError as error:
                    self._fail(error)
                yield
        except NoEffectError as error:
            self._fail(error)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as directed."""
        return {
            "current": None if self._current is None else self._current.to_mapping(),
            "pending": None if self._pending is None else self._pending.to_mapping(),
            "seen": self._seen,
            "failed_version": self._failed_version,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Noise starts with the next `step`.

        Raises:
            DirectiveError: a directive in it is none.
        """
        self._current, self._pending = (
            None if state[name] is None else Directive.from_mapping(state[name]) for name in ("current", "pending")
        )
        self._seen = int(state["seen"])
        self._failed_version = state["failed_version"]

    def _fail(self, error: AlpError) -> None:
        self.last_failure = str(error)
        self._failed = True
        self.perturbation.gain = 0.0

    # --- what is said ---------------------------------------------------------------------------------------------

    def _exchange(self) -> tuple[Any, bool]:
        """What rank 0's source says, on every rank, and whether the noise of any rank had no effect."""
        failed, self._failed = self._failed, False
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._ask(), failed
        device = _collective_device(self._group)
        buffer = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        if distributed.get_rank(self._group) == 0:
            encoded = _encode(self._ask())
            buffer[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        buffer = buffer.to(device)
        flag = torch.tensor([int(failed)], device=device)
        first = 0 if self._group is None else distributed.get_global_rank(self._group, 0)
        distributed.broadcast(buffer, src=first, group=self._group)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
        return json.loads(bytes(buffer.cpu().tolist()).rstrip(b"\0")), bool(flag.item())

    def _ask(self) -> Any:
        try:
            return self._source()
        except Exception as error:  # noqa: BLE001 — a source that fails is a service that says nothing
            self._refuse(f"the source failed: {error!r}")
            return None

    def _receive(self, message: Any, *, step: int) -> None:
        if message is None:
            return
        try:
            if not isinstance(message, Mapping):
                raise DirectiveError(f"a directive is an object, not {message!r}")
            directive = Directive.from_mapping(message)
            if directive.version <= self._seen:
                return  # the same again, as every answer carries it
            self._seen = directive.version
            self._check(directive, step=step)
        except (DirectiveError, LayerRangeError, LayersNotFoundError) as error:
            self._refuse(str(error))
            return
        self._pending = directive

    def _check(self, directive: Directive, *, step: int) -> None:
        low, high = self.perturbation.scale.bounds
        if directive.noisy and not low <= directive.strength <= high:
            raise DirectiveError(f"strength={directive.strength!r}: the trainer's bounds are {low:g} to {high:g}")
        select_layers(directive.layers, count=self.perturbation.layer_count)
        if step >= directive.expires_at:
            raise DirectiveError(f"version {directive.version} expired at step {directive.expires_at}, now {step}")

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self.last_refusal = reason

    # --- what holds -----------------------------------------------------------------------------------------------

    def _setting(self, step: int) -> Setting:
        directive = self._current
        count = self.perturbation.layer_count
        if directive is None:
            return self._off(step, reason="no directive")
        layers = select_layers(directive.layers, count=count)
        if directive.version == self._failed_version:
            return self._off(step, reason="the noise failed on a rank: see last_failure there")
        late = step - directive.expires_at
        if late < 0:
            return Setting(
                step=step,
                state=directive.state,
                strength=directive.strength if directive.noisy else 0.0,
                layers=layers,
                clip=directive.clip,
                version=directive.version,
                reason=f"directive {directive.version}",
            )
        left = 1 - (late + 1) / self._decay_steps
        if not directive.noisy or left <= 0:
            return self._off(step, reason=f"directive {directive.version} expired at step {directive.expires_at}")
        return Setting(
            step=step,
            state="decay",
            strength=directive.strength * left,
            layers=layers,
            clip=directive.clip,
            version=directive.version,
            reason=f"directive {directive.version} expired at step {directive.expires_at}: decaying",
        )

    def _off(self, step: int, *, reason: str) -> Setting:
        version = None if self._current is None else self._current.version
        return Setting(step=step, state="off", strength=0.0, layers=(), clip=None, version=version, reason=reason)

    def _apply(self, setting: Setting) -> None:
        perturbation = self.perturbation
        if setting.strength == 0 or self._current is None:
            perturbation.gain = 0.0
            return
        if self._set != self._current.strength:  # only then: a learned sigma has moved on since
            perturbation.set_sigma(self._current.strength)
            self._set = self._current.strength
        if perturbation.layers != setting.layers:
            perturbation.set_layers(setting.layers)
        perturbation.gain = setting.strength / self._current.strength


def _encode(message: Any) -> bytes:
    try:
        encoded = json.dumps(message).encode()
    except (TypeError, ValueError) as error:
        encoded = json.dumps(f"not JSON: {error}").encode()
    return encoded if len(encoded) <= _MESSAGE_BYTES else json.dumps(f"{len(encoded)} bytes").encode()


def _collective_device(group: Any) -> torch.device:
    if torch.distributed.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
