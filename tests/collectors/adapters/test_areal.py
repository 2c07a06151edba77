from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tailwatch_collectors.adapters import areal
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences

T = 9
COLUMNS = {
    "token_ids": "tokens",
    "infer_version": "versions",
    "reward": "reward",
}


def trajectory(made: list[Made]) -> dict[str, Any]:
    """[G, T] right-padded: index i is token i, but `prox_logp`, where it is token i + 1."""
    G = len(made)
    found = {
        "input_ids": torch.zeros(G, T, dtype=torch.int32),
        "attention_mask": torch.zeros(G, T, dtype=torch.bool),
        "loss_mask": torch.zeros(G, T, dtype=torch.int32),
        "logprobs": torch.zeros(G, T),
        "versions": torch.full((G, T), -1, dtype=torch.int32),
        "prox_logp": torch.full((G, T), -7.0),
        "rewards": torch.tensor([one.reward for one in made]),
    }
    for g, one in enumerate(made):
        for i, token in enumerate(one.prompt + one.tokens):
            found["input_ids"][g, i] = token
            found["attention_mask"][g, i] = True
        for t in range(len(one.tokens)):
            i = len(one.prompt) + t
            found["loss_mask"][g, i] = int(one.mask[t])
            found["logprobs"][g, i] = one.infer[t]
            found["versions"][g, i] = one.versions[t]
            found["prox_logp"][g, i - 1] = one.train[t]
    return found


def advantages(made: list[Made]) -> dict[str, Any]:
    """As `compute_advantages` leaves them: index i is token i + 1, everything else shifted with them."""
    found = torch.zeros(len(made), T)
    for g, one in enumerate(made):
        for t in range(len(one.tokens)):
            found[g, len(one.prompt) + t - 1] = one.advantages[t]
    return {"advantages": found}


def test_trajectories_are_the_truth() -> None:
    truth = sequences()
    before = [trajectory(truth[:2]), trajectory(truth[2:])]

    found = areal.trajectories(before, [advantages(truth[:2]), advantages(truth[2:])])

    assert_equal(found, truth, columns={**COLUMNS, "advantage": "advantages"})
    assert found["prompt_id"] == ["0", "0", "1"]
    assert found["seq_id"] == ["0.0", "0.1", "1.0"]
    assert [turn.tolist() for turn in found["turn"]] == [one.turns for one in truth]


class Handle:
    """A tensor elsewhere."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to_local(self) -> torch.Tensor:
        return self._tensor


class Actor:
    """Overwrites the rollout's log-probs, as `recompute_logprob` does."""

    def __init__(self, made: list[Made], version: int) -> None:
        self.made, self.version = made, version

    def get_version(self) -> int:
        return self.version

    def compute_advantages(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for one in data:
            one["logprobs"] = one["prox_logp"]
            one["loss_mask"] = torch.zeros(1)
        return [{**one, **advantages(self.made)} for one in data]


@pytest.mark.parametrize("remote", [False, True])
def test_an_actor_is_looked_at_before_it_overwrites(remote: bool) -> None:
    truth = sequences()[:2]
    actor, recorder = Actor(truth, version=6), Recorder()
    undo = areal.attach(SimpleNamespace(actor=actor), recorder)  # type: ignore[arg-type]
    data = trajectory(truth)

    result = actor.compute_advantages([{name: Handle(value) for name, value in data.items()} if remote else data])
    undo()

    assert len(result) == 1
    assert (recorder.records[0]["step"], recorder.records[0]["train_version"]) == (6, 6)
    assert_equal(recorder.records[0], truth, columns={**COLUMNS, "advantage": "advantages"})
    assert "compute_advantages" not in vars(actor)


def test_without_a_training_forward_nothing_is_recorded() -> None:
    truth = sequences()[:2]
    actor, recorder = Actor(truth, version=0), Recorder()
    actor.compute_advantages = lambda *args, **kwargs: []  # type: ignore[method-assign]  # a controller's signature
    areal.attach(actor, recorder)  # type: ignore[arg-type]
    data = trajectory(truth)
    del data["prox_logp"]

    assert actor.compute_advantages([data]) == []
    assert recorder.records == []
