"""The declared class of a run, which decides the bands it is held to, and whether its weights may be stale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tailwatch_collectors.summary.schema import LAG_EDGES, LAG_LABELS

RunClass = Literal["dense", "coarse", "moe"]
"""dense: bf16, fp16 or fp32. coarse: rollout in 8 bits or fewer, or a vision-language model. moe: routed experts."""

LADDER: tuple[RunClass, ...] = get_args(RunClass)
"""From the strictest band to the widest."""

COARSE_MARKS = ("fp8", "int8", "int6", "int4", "int3", "w8a8", "w4a", "fp4", "nf4", "awq", "gptq", "e4m3", "e5m2")
"""What a precision is called that has 8 bits or fewer."""

UNKNOWN_LAG = "unknown"
"""Lag bucket of steps that came without weight versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What a run says of itself, as far as rules care."""

    run_class: RunClass
    asynchronous: bool
    """It declared a staleness bound above 0."""


def declared(*, precision: str | None, model_class: str | None, staleness_bound: int | None) -> Declared:
    """The class of a run; dense, the strictest, where nothing is declared."""
    precision_text, class_text = (precision or "").lower(), (model_class or "").lower()
    run_class: RunClass = "dense"
    if "moe" in class_text:
        run_class = "moe"
    elif "vlm" in class_text or any(mark in precision_text for mark in COARSE_MARKS):
        run_class = "coarse"
    return Declared(run_class=run_class, asynchronous=(staleness_bound or 0) > 0)


def lag_bucket(lag_mean: float | None) -> str:
    """Bucket in which steps count as being at equal lag.

    A mean between two whole lags belongs to the upper one: a step of which any part is stale is not at lag 0.
    """
    if lag_mean is None:
        return UNKNOWN_LAG
    index = int(np.searchsorted(LAG_EDGES, np.ceil(max(lag_mean, 0.0)), side="right")) - 1
    return str(LAG_LABELS[index])
