"""open-instruct: what `compute_rho_correction` is given, one packed micro-batch at a time, on every learner.

Layout: [B, S-1], several prompts and responses packed into each row; index i belongs to token i + 1. Outside the
response both sides hold 1.0, which is no log-prob, and the mask is false. `position_ids` [B, S] start again at 0 with
every sequence; they and the token ids come from the forward pass just before. The training side is the old policy's,
computed before the first update. With `use_vllm_logprobs` that is the rollout itself; then the forward pass of the
loss is taken, if the step has one update, and nothing otherwise.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.adapters.rows import Row
from tailwatch_collectors.adapters.wrapping import Arguments, Undo, wrap

if TYPE_CHECKING:
    from tailwatch_collectors.collector import Collector


def packed(
    *,
    train_logprobs: Any,
    vllm_logprobs: Any,
    response_mask: Any,
    advantages: Any = None,
    query_responses: Any = None,
    position_ids: Any = None,
    entropy: Any = None,
) -> dict[str, Any]:
    """A packed micro-batch as keywords of `Collector.record`.

    Args:
        train_logprobs: [B, S-1] under the training engine.
        vllm_logprobs: [B, S-1] of the rollout.
        response_mask: [B, S-1].
        advantages: [B, S-1], or [B, S] with the first token's.
        query_responses: [B, S] token ids.
        position_ids: [B, S]; None: every unbroken stretch of response tokens is a sequence of its own, so a
            conversation with several turns falls apart.
        entropy: [B, S-1].

    Raises:
        BatchError: arrays of unequal length.
    """
    train_BT, infer_BT, mask_BT = rows.floats(train_logprobs), rows.floats(vllm_logprobs), rows.flags(response_mask)
    width = mask_BT.shape[1]
    more_BT = {
        "advantage": None if advantages is None else rows.floats(advantages)[:, -width:],
        "token_ids": None if query_responses is None else rows.integers(query_responses)[:, 1:],
        "entropy": None if entropy is None else rows.floats(entropy),
    }
    found: list[Row] = []
    for b in range(len(mask_BT)):
        places = None if position_ids is None else rows.integers(position_ids)[b, 1:]
        for cut in _sequences(mask_BT[b], places):
            row = rows.response(
                infer_logprobs=infer_BT[b, cut],
                train_logprobs=train_BT[b, cut],
                mask=mask_BT[b, cut],
                **{name: None if values is None else values[b, cut] for name, values in more_BT.items()},
            )
            if row is not None:
                found.append(row)
    return rows.columns(found)


def attach(trainer: Any, collector: Collector, *, grpo_utils: Any, first_step: int = 1) -> Undo:
    """Record every micro-batch of every step; the function returned undoes it.

    Args:
        trainer: the learner (`PolicyTrainerRayProcess`), inside its Ray actor; its `step` is one training step.
        collector: connected there with the learner's rank and their number.
        grpo_utils: `open_instruct.grpo_utils`.
        first_step: number of the first step of this launch.

    Raises:
        AttributeError: one of the functions wrapped is not there: another version of open-instruct.
    """
    tap = _Tap(collector, first_step=first_step)
    undone = [
        wrap(trainer, "step", guard=collector.guard, before=tap.begin, after=tap.end),
        wrap(grpo_utils, "forward_for_logprobs", guard=collector.guard, after=tap.forward),
        wrap(grpo_utils, "compute_rho_correction", guard=collector.guard, before=tap.record),
    ]

    def undo() -> None:
        for one in reversed(undone):
            one()

    return undo


class _Tap:
    """What is known in the middle of a step."""

    def __init__(self, collector: Collector, *, first_step: int) -> None:
        self._collector = collector
        self._steps = itertools.count(first_step)
        self._step: int | None = None
        self._inputs: Arguments = {}
        self._outputs: Any = None
        self._recorded: list[Any] = []

    def begin(self, _arguments: Arguments) -> None:
        self._step = next(self._steps)
        self._recorded = []

    def end(self, _result: Any, _seen: Any, _arguments: Arguments) -> None:
        if self._step is not None:
            self._collector.end_step(self._step)
        self._step, self._inputs, self._outputs, self._recorded = None, {}, None, []

    def forward(self, result: Any, _seen: Any, arguments: Arguments) -> None:
        self._inputs, self._outputs = arguments, result

    def record(self, arguments: Arguments) -> None:
        packs = self._inputs.get("query_responses")
        # A later epoch goes over the same packs with the same old log-probs.
        if self._step is None or packs is None or any(packs is seen for seen in self._recorded):
            return
        self._recorded.append(packs)
        train = arguments["old_logprob"]
        if getattr(arguments.get("config"), "use_vllm_logprobs", False):
            if getattr(arguments.get("config"), "num_mini_batches", 1) > 1:
                message = "use_vllm_logprobs with several mini-batches: no log-probs of the training engine to compare"
                self._collector.guard.once("open_instruct", "vllm", message=message)
                return
            train = self._outputs[0]
        found = packed(
            train_logprobs=train,
            vllm_logprobs=arguments["vllm_logprobs"],
            response_mask=arguments["response_mask"],
            advantages=arguments.get("advantages"),
            query_responses=packs,
            position_ids=self._inputs.get("position_ids"),
            entropy=self._outputs[1],
        )
        self._collector.record(step=self._step, final=False, **found)


def _sequences(mask_T: NDArray[np.bool_], places_T: NDArray[np.int64] | None) -> list[slice]:
    """Where the sequences of one pack lie; index i is token i + 1, so a sequence that starts there has place 0."""
    if places_T is None:
        edges = np.flatnonzero(np.diff(np.concatenate(([False], mask_T, [False])).astype(np.int8)))
        return [slice(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
    starts = [0, *(int(t) for t in np.flatnonzero(places_T == 0) if t > 0), len(mask_T)]
    return [slice(start, end) for start, end in itertools.pairwise(starts)]
