"""prime-rl: a custom loss that looks at every sample and hands it on to the loss you had.

    [trainer.loss]
    type = "custom"
    import_path = "tailwatch_collectors.adapters.prime_rl.loss_tap"
    kwargs = { project = "math", run = "grpo-7b", url = "http://monitor:8321" }

Layout of one sample: [S], prompt and response; index i is token i. `loss_mask` is true on the tokens the policy
sampled and trains on. The training log-probs are those of the loss's own forward pass (phase `update`; prime-rl makes
one update a step). A loss is not told the step: the tap counts optimiser steps from `first_step`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.session import placement

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector

BUFFER_TOKENS = 2**20
"""Tokens held back at most before a part of the step is recorded."""

_LOSSES = {"default": ("default_loss_fn", "DefaultLossConfig"), "ipo": ("ipo_loss_fn", "IPOLossConfig")}


def sample(inputs: Any) -> Row | None:
    """One `LossInputs` as a row; None where no token counts.

    Raises:
        BatchError: arrays of unequal length.
    """
    return rows.response(
        infer_logprobs=inputs.inference_logprobs,
        train_logprobs=inputs.trainer_logprobs,
        mask=inputs.loss_mask,
        advantage=rows.floats(inputs.advantages),
    )


class LossTap:
    """Looks at the samples of one rank and records them step by step. Never raises from `see` and `end_step`."""

    def __init__(self, collector: Collector, *, first_step: int = 1) -> None:
        self.step = first_step
        """The step the next sample belongs to."""
        self._collector = collector
        self._held: list[Any] = []
        self._tokens = 0
        self._open = False

    def see(self, inputs: Any) -> None:
        """Keep one sample until its step is over; the tensors are detached, so no graph is kept."""
        with self._collector.guard("prime_rl see"):
            held = _Held(inputs)
            self._held.append(held)
            self._tokens += len(held.loss_mask)
            if self._tokens >= BUFFER_TOKENS:
                self._record(final=False)

    def end_step(self) -> None:
        """Record the step; does nothing where no sample came, so that several optimisers end one step."""
        with self._collector.guard("prime_rl end_step"):
            if self._held or self._open:
                self._record(final=True)
                self.step += 1

    def _record(self, *, final: bool) -> None:
        held, self._held, self._tokens, self._open = self._held, [], 0, not final
        found = [row for row in map(sample, held) if row is not None]
        self._collector.record(step=self.step, phase="update", final=final, **rows.columns(found))


class _Held:
    """What is kept of a `LossInputs`."""

    def __init__(self, inputs: Any) -> None:
        for name in ("trainer_logprobs", "inference_logprobs", "advantages", "loss_mask"):
            value = getattr(inputs, name)
            setattr(self, name, value.detach() if hasattr(value, "detach") else value)

    loss_mask: Any


def loss_tap(inputs: Any, **settings: Any) -> Any:
    """A loss function for `trainer.loss.import_path`: looks, then returns what the loss behind it returns.

    Args:
        inputs: `LossInputs` of one sample.
        **settings: `loss`: `default`, `ipo` or the import path of your own (default `default`); `loss_config`:
            its settings; `first_step`: number of the first step of this launch (default 1; the checkpoint's + 1 after
            a resume); `context_parallel`: ranks that share a sample (default 1); everything else goes to `connect`.

    Raises:
        ConfigurationError: at the first sample, where a setting is wrong.
    """
    key = repr(sorted(settings.items()))
    if key not in _TAPS:
        _TAPS[key] = _open(**settings)
    tap, behind = _TAPS[key]
    if tap is not None:
        tap.see(inputs)
    return behind(inputs)


_TAPS: dict[str, tuple[LossTap | None, Callable[[Any], Any]]] = {}


def _open(
    *,
    loss: str = "default",
    loss_config: Mapping[str, Any] | None = None,
    first_step: int = 1,
    context_parallel: int = 1,
    **connect: Any,
) -> tuple[LossTap | None, Callable[[Any], Any]]:
    import os

    from tailwatch_collectors import collector as collectors

    behind = _loss(loss, dict(loss_config or {}))
    if context_parallel < 1:
        raise ConfigurationError(f"context_parallel is {context_parallel}, expected at least 1")
    rank, world_size = placement(os.environ, rank=connect.pop("rank", None), world_size=connect.pop("world_size", None))
    if rank % context_parallel:
        return None, behind  # its samples are those of the first rank of its group
    shards = None if world_size is None else max(1, world_size // context_parallel)
    opened = collectors.connect(
        **{"framework": "prime-rl", **connect}, rank=rank // context_parallel, world_size=shards
    )
    tap = LossTap(opened, first_step=first_step)
    _follow_optimisers(tap)
    return tap, behind


def _loss(name: str, config: dict[str, Any]) -> Callable[[Any], Any]:
    try:
        if name in _LOSSES:
            function, settings = _LOSSES[name]
            made = getattr(importlib.import_module("prime_rl.configs.trainer"), settings)(**config)
            found = getattr(importlib.import_module("prime_rl.trainer.rl.loss"), function)
            return functools.partial(found, loss_config=made)
        module, _, attribute = name.replace(":", ".").rpartition(".")
        return functools.partial(getattr(importlib.import_module(module), attribute), **config)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"loss {name!r} cannot be loaded: {error}") from error


def _follow_optimisers(tap: LossTap) -> None:
    """End a step when any optimiser of the process has made one."""

    def ended(*_: Any) -> None:
        tap.end_step()

    # By name: this package depends on no framework, and torch is there where this is called.
    importlib.import_module("torch.optim.optimizer").register_optimizer_step_post_hook(ended)
