from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tailwatch_collectors.adapters import open_instruct
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences

INVALID = 1.0
"""What open-instruct fills both sides with outside the response."""

COLUMNS = {"token_ids": "tokens", "advantage": "advantages", "entropy": "entropies"}


def packs(made: list[Made], *, width: int = 24) -> dict[str, torch.Tensor]:
    """The sequences packed into rows of two and the rest, [B, S] each, padded with a zero."""
    found = {
        "query_responses": torch.zeros(2, width, dtype=torch.long),
        "position_ids": torch.zeros(2, width, dtype=torch.long),
        "response_mask": torch.zeros(2, width, dtype=torch.bool),
        "vllm_logprobs": torch.full((2, width), INVALID),
        "train_logprobs": torch.full((2, width), INVALID),
        "advantages": torch.zeros(2, width),
        "entropy": torch.full((2, width), 9.0),
    }
    at = [0, 0]
    for index, one in enumerate(made):
        row = 0 if index < 2 else 1
        for i, token in enumerate(one.prompt + one.tokens):
            s = at[row] + i
            found["query_responses"][row, s] = token
            found["position_ids"][row, s] = i
            t = i - len(one.prompt)
            if t >= 0:
                found["advantages"][row, s] = one.advantages[t]
                found["entropy"][row, s] = entropies(one)[t]
                found["response_mask"][row, s] = one.mask[t]
            if t >= 0 and one.mask[t]:
                found["vllm_logprobs"][row, s] = one.infer[t]
                found["train_logprobs"][row, s] = one.train[t]
        at[row] += one.length
    return found


def entropies(one: Made) -> list[float]:
    return [t / 16 for t in range(len(one.tokens))]


def truth() -> list[Made]:
    made = sequences()
    for one in made:
        one.entropies = entropies(one)  # type: ignore[attr-defined]
    return made


def test_packed_rows_are_the_truth() -> None:
    made = truth()
    found = packs(made)

    record = open_instruct.packed(
        train_logprobs=found["train_logprobs"][:, 1:],
        vllm_logprobs=found["vllm_logprobs"][:, 1:],
        response_mask=found["response_mask"][:, 1:],
        advantages=found["advantages"][:, 1:],
        query_responses=found["query_responses"],
        position_ids=found["position_ids"],
        entropy=found["entropy"][:, 1:],
    )

    assert_equal(record, made, columns=COLUMNS)
    assert [turn.tolist() for turn in record["turn"]] == [one.turns for one in made]


def test_without_positions_every_stretch_is_a_sequence() -> None:
    found = packs(truth())

    record = open_instruct.packed(
        train_logprobs=found["train_logprobs"][:, 1:],
        vllm_logprobs=found["vllm_logprobs"][:, 1:],
        response_mask=found["response_mask"][:, 1:],
    )

    # 111, then 11 and 1 of the one with two turns, then 1.
    assert [len(row) for row in record["infer_logprobs"]] == [3, 2, 1, 1]
    assert all((row <= 0).all() for row in record["infer_logprobs"])


class Grpo:
    """`grpo_utils`: a forward pass, and the correction it leads to."""

    def __init__(self, found: dict[str, torch.Tensor]) -> None:
        self.found = found

    def forward_for_logprobs(
        self, model: Any, query_responses: Any, attention_mask: Any, position_ids: Any, return_entropy: bool = False
    ) -> tuple[Any, Any]:
        return self.found["train_logprobs"][:, 1:], self.found["entropy"][:, 1:] if return_entropy else None

    def compute_rho_correction(
        self, old_logprob: Any, vllm_logprobs: Any, response_mask: Any, advantages: Any, config: Any
    ) -> str:
        return "rho"


class Learner:
    def __init__(self, grpo: Any, found: dict[str, torch.Tensor], config: Any) -> None:
        self.grpo, self.found, self.config = grpo, found, config

    def step(self) -> str:
        for _epoch in range(2):
            self.grpo.forward_for_logprobs(
                None, self.found["query_responses"], None, self.found["position_ids"], return_entropy=True
            )
            vllm = self.found["vllm_logprobs"][:, 1:]
            old = vllm if self.config.use_vllm_logprobs else self.found["train_logprobs"][:, 1:]
            mask, advantages = self.found["response_mask"][:, 1:], self.found["advantages"][:, 1:]
            assert self.grpo.compute_rho_correction(old, vllm, mask, advantages, self.config) == "rho"
        return "metrics"


def run(*, use_vllm_logprobs: bool = False, num_mini_batches: int = 1) -> Recorder:
    found = packs(truth())
    grpo = Grpo(found)
    config = SimpleNamespace(use_vllm_logprobs=use_vllm_logprobs, num_mini_batches=num_mini_batches)
    learner, recorder = Learner(grpo, found, config), Recorder()
    undo = open_instruct.attach(learner, recorder, grpo_utils=grpo, first_step=4)  # type: ignore[arg-type]
    assert learner.step() == "metrics"
    assert learner.step() == "metrics"
    undo()
    learner.step()
    assert vars(grpo).keys() == {"found"}
    return recorder


def test_a_learner_is_looked_at_once_per_pack_and_step() -> None:
    recorder = run()

    assert [record["step"] for record in recorder.records] == [4, 5]
    assert recorder.ended == [4, 5]
    assert_equal(recorder.records[0], truth(), columns=COLUMNS)


def test_where_old_is_the_rollout_the_forward_pass_is_taken() -> None:
    assert_equal(run(use_vllm_logprobs=True).records[0], truth(), columns=COLUMNS)


def test_where_old_is_the_rollout_and_updates_follow_nothing_is_recorded() -> None:
    assert run(use_vllm_logprobs=True, num_mini_batches=2).records == []
