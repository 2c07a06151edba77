"""Did the noise do anything: the share of entries it changed, and its realised size over the nominal one.

In bfloat16 a small sigma is lost in rounding: at 1e-6 of the RMS, 0.03 % of the entries change and the run is one
without noise that says "on". The meter looks at 64 tokens per layer and forward, spread over the micro-batch, and adds
five sums on the device; nothing is read by the host until somebody asks.

Shapes: N tokens, D hidden size, L layers.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLE_TOKENS = 64
_METERS: weakref.WeakValueDictionary[int, Meter] = weakref.WeakValueDictionary()
_HANDLES = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEffect:
    """What the noise did to the input of one layer, since the meter was last reset."""

    layer: int
    """Layer number."""
    tokens: int
    """Sampled tokens."""
    changed_share: float
    """Share of entries whose value changed, 0 to 1; NaN without samples."""
    realised_over_nominal: float
    """RMS of what was added after rounding, over sigma * RMS(h): 1 if nothing is lost; NaN without samples."""
    relative_size: float
    """RMS of what was added over RMS(h); NaN without samples."""


class Meter:
    """Sums of one Perturbation, one row per layer: entries, changed, realised^2, nominal^2, hidden^2."""

    def __init__(self, *, layers: int) -> None:
        self.handle = next(_HANDLES)
        self.listening = True
        self._layers = layers
        self._sums_L5: dict[torch.device, Tensor] = {}
        self._width = 0
        _METERS[self.handle] = self

    def observe(self, *, layer: int, before_ND: Tensor, after_ND: Tensor, nominal_N: Tensor) -> None:
        """Add a sample of one layer's tokens. Called by the operator; queues device work, waits for nothing."""
        if not self.listening or before_ND.numel() == 0:
            return
        every = max(1, before_ND.shape[0] // _SAMPLE_TOKENS)
        before = before_ND[::every][:_SAMPLE_TOKENS]
        after = after_ND[::every][:_SAMPLE_TOKENS]
        nominal = nominal_N[::every][:_SAMPLE_TOKENS]
        self._width = before.shape[1]
        before_wide = before.to(torch.promote_types(before.dtype, torch.float32))
        sums = torch.stack(
            (
                nominal.new_full((), before.numel()),
                (before != after).sum().float(),
                (after - before_wide).square_().sum().float(),
                nominal.square().sum() * before.shape[1],
                before_wide.square().sum().float(),
            )
        )
        self._table(before.device)[layer] += sums.double()

    def reset(self) -> None:
        """Forget the sums."""
        for table in self._sums_L5.values():
            table.zero_()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Counts inside are apart from those outside, under the same handle: a compiled model has it as a constant."""
        kept = self._sums_L5, self._width, self.listening
        self._sums_L5 = {}
        try:
            yield
        finally:
            self._sums_L5, self._width, self.listening = kept

    def read(self) -> list[LayerEffect]:
        """The effect on every layer that was sampled. Waits for the device once."""
        total = torch.zeros(self._layers, 5, dtype=torch.float64)
        for table in self._sums_L5.values():
            total += table.cpu()
        return [_effect(layer, row, width=self._width) for layer, row in enumerate(total.tolist()) if row[0] > 0]

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._sums_L5:
            self._sums_L5[device] = torch.zeros(self._layers, 5, dtype=torch.float64, device=device)
        return self._sums_L5[device]


def meter_of(handle: int) -> Meter | None:
    """The living meter with this handle; None: there is none."""
    return _METERS.get(handle)


def _effect(layer: int, row: list[float], *, width: int) -> LayerEffect:
    entries, changed, realised, nominal, hidden = row
    return LayerEffect(
        layer=layer,
        tokens=round(entries / width),
        changed_share=changed / entries,
        realised_over_nominal=(realised / nominal) ** 0.5 if nominal > 0 else float("nan"),
        relative_size=(realised / hidden) ** 0.5 if hidden > 0 else float("nan"),
    )
