from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tailwatch_collectors.adapters import openrlhf
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences
from tests.collectors.conftest import FakeService

T = 9
COLUMNS = {"token_ids": "tokens", "advantage": "advantages", "reward": "reward"}


def experience(made: list[Made], *, first: int) -> Any:
    """[B, T] tokens, [B, T-1] the rest: index i is token i + 1; right-padded."""
    B = len(made)
    one = SimpleNamespace(
        sequences=torch.zeros(B, T, dtype=torch.long),
        action_mask=torch.zeros(B, T - 1, dtype=torch.long),
        rollout_log_probs=torch.zeros(B, T - 1),
        action_log_probs=torch.full((B, T - 1), -7.0),
        advantages=torch.zeros(B, T - 1),
        rewards=torch.tensor([row.reward for row in made]),
        index=[first + b for b in range(B)],
    )
    for b, row in enumerate(made):
        for i, token in enumerate(row.prompt + row.tokens):
            one.sequences[b, i] = token
        for t in range(len(row.tokens)):
            i = len(row.prompt) + t - 1
            one.action_mask[b, i] = int(row.mask[t])
            one.rollout_log_probs[b, i] = row.infer[t]
            one.action_log_probs[b, i] = row.train[t]
            one.advantages[b, i] = row.advantages[t]
    return one


def test_experiences_are_the_truth() -> None:
    truth = sequences()

    found = openrlhf.experiences([experience(truth[:2], first=0), experience(truth[2:], first=2)], group_size=2)

    assert_equal(found, truth, columns=COLUMNS)
    assert found["prompt_id"] == ["0", "0", "1"]
    assert found["seq_id"] == ["0", "1", "2"]
    assert [turn.tolist() for turn in found["turn"]] == [one.turns for one in truth]


class Maker:
    def __init__(self, result: list[Any]) -> None:
        self.result = result

    def make_experience_batch(self, rollout_samples: Any) -> list[Any]:
        return self.result


class Trainer:
    def __init__(self, result: list[Any]) -> None:
        self.args = SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=2))
        self.experience_maker = Maker(result)

    def train_step(self, rollout_samples: Any, global_step: int) -> tuple[dict[str, int], int]:
        return {"made": len(self.experience_maker.make_experience_batch(rollout_samples))}, global_step + 1


def test_a_trainer_is_looked_at() -> None:
    truth = sequences()
    trainer, recorder = Trainer([experience(truth, first=0)]), Recorder()
    undo = openrlhf.attach(trainer, recorder)  # type: ignore[arg-type]

    assert trainer.train_step("samples", 4) == ({"made": 1}, 5)
    undo()
    trainer.train_step("samples", global_step=5)

    assert [record["step"] for record in recorder.records] == [4]
    assert_equal(recorder.records[0], truth, columns=COLUMNS)
    assert recorder.records[0]["prompt_id"] == ["0", "0", "1"]


def test_installed_it_attaches_to_every_trainer_made(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, until: Callable[[Callable[[], object]], None]
) -> None:
    monkeypatch.setenv("TAILWATCH_URL", service.url)
    truth = sequences()
    module = ModuleType("openrlhf.trainer.ppo_trainer")

    class BasePPOTrainer(Trainer):
        pass

    module.BasePPOTrainer = BasePPOTrainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    openrlhf.install()
    collectors: list[Any] = []
    monkeypatch.setattr(openrlhf, "attach", lambda trainer, collector: collectors.append((trainer, collector)))

    trainer = BasePPOTrainer([experience(truth, first=0)])

    ((attached, collector),) = collectors
    assert attached is trainer
    until(lambda: service.of("runs"))
    assert service.of("runs")[0].json["project"] == "openrlhf"
    assert service.of("runs")[0].json["world_size"] == 1
    collector.close()
    monkeypatch.delenv("TAILWATCH_URL")
    BasePPOTrainer([])
    assert len(collectors) == 1


def test_without_rollout_log_probs_nothing_is_recorded() -> None:
    one = experience(sequences(), first=0)
    one.rollout_log_probs = None
    trainer, recorder = Trainer([one]), Recorder()
    openrlhf.attach(trainer, recorder)  # type: ignore[arg-type]

    trainer.train_step("samples", 0)

    assert recorder.records == []
