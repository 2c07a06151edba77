"""A real GRPOTrainer with ALP: what its loss sees, and both log-probs at the service under their own names."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from tailwatch_alp import Perturbation
from tailwatch_alp.actuator import Actuator
from tailwatch_alp.adapters.trl import Observation, attach, over_sampler
from tailwatch_alp.errors import LossInputError
from tests.e2e.conftest import service  # noqa: F401 — a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "alp" / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the TRL example."""
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    return runpy.run_path(str(EXAMPLES / "trl_grpo.py"))


def test_training_streams_clean_and_perturbed_log_probs(
    example: dict[str, Any],
    service: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("TAILWATCH_SPOOL_DIR", str(tmp_path_factory.mktemp("spool")))
    seen: list[Observation] = example["main"](["--steps", "2", "--url", service])
    assert [(batch.step, batch.micro_batch) for batch in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    (run,) = httpx.get(f"{service}/api/v1/runs").json()["runs"]
    for phase, name in (("update", "clean_BT"), ("update_perturbed", "perturbed_BT")):
        answer = httpx.get(f"{service}/api/v1/runs/{run['run_id']}/series", params={"metrics": "kl_k3", "phase": phase})
        content = answer.json()
        assert content["steps"] == [0, 1], content
        for step, value in zip(content["steps"], content["metrics"]["kl_k3"], strict=True):
            batches = [batch for batch in seen if batch.step == step]
            d = torch.cat([(getattr(batch, name) - batch.infer_BT)[batch.mask_BT] for batch in batches]).double()
            assert value == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-3)
    # Nobody who asks without a phase is given a perturbed number.
    headline = httpx.get(f"{service}/api/v1/runs/{run['run_id']}/series", params={"metrics": "kl_k3"}).json()
    assert headline["phase"] == "update"
    steps = [
        httpx.get(f"{service}/api/v1/runs/{run['run_id']}/steps/1", params={"phase": phase}).json()
        for phase in ("update", "update_perturbed")
    ]
    assert [content["phase"] for content in steps] == ["update", "update_perturbed"]
    assert all(content["closed"] and content["coverage"] == 1.0 for content in steps)
    assert steps[1]["metrics"]["kl_k3"] > 5 * steps[0]["metrics"]["kl_k3"] > 0
    # What the noise adds is what theory says of it, far above the engine's own mismatch.
    noise = torch.cat([(batch.perturbed_BT - batch.clean_BT)[batch.mask_BT] for batch in seen])
    engine = torch.cat([(batch.clean_BT - batch.infer_BT)[batch.mask_BT] for batch in seen])
    assert noise.std() > 5 * engine.std()
    assert engine.std() > 1e-4, "the sampler is not the bfloat16 copy it says it is"


def test_the_loss_divides_by_the_sampler_and_generation_is_clean(
    example: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    trainer = example["make_trainer"](tmp_path_factory.mktemp("trl"), steps=2)
    perturbation = Perturbation(trainer.model, sigma=0.1)
    generation = trainer._generate_and_score_completions
    noisy_at_generation = []

    def generate(inputs: Any) -> Any:
        noisy_at_generation.append(perturbation.current is not None)
        return generation(inputs)

    trainer._generate_and_score_completions = generate
    losses, expected = [], []
    original = trainer._compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any]) -> Any:
        loss = original(model, inputs)
        losses.append(loss.item())
        return loss

    trainer._compute_loss = compute_loss

    def observe(seen: Observation) -> None:
        ratio = (seen.perturbed_BT - seen.infer_BT).double().exp()
        advantages = trainer_inputs[-1]["advantages"][:, None].double()
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.5, 4.0) * advantages)
        expected.append((loss * seen.mask_BT).sum().item() / trainer_inputs[-1]["num_items_in_batch"].item())

    trainer_inputs: list[dict[str, Any]] = []
    undo = attach(trainer, perturbation, observe=observe)
    wrapped = trainer._compute_loss

    def remember(model: Any, inputs: dict[str, Any]) -> Any:
        trainer_inputs.append(inputs)
        return wrapped(model, inputs)

    trainer._compute_loss = remember
    trainer.train()
    assert noisy_at_generation == [False] * len(noisy_at_generation) != []
    assert len(losses) == len(expected) == 4
    scale = [a / b for a, b in zip(losses, expected, strict=True) if abs(b) > 1e-6]
    # TRL's own normalisation of the token mean over processes and accumulation, the same for every micro-batch.
    assert scale == pytest.approx([scale[0]] * len(scale), rel=1e-3)
    undo()
    assert trainer._compute_loss is compute_loss


def test_an_actuator_switches_noise_and_clip(example: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    trainer = example["make_trainer"](tmp_path_factory.mktemp("trl"), steps=3)
    said = {
        "version": 1,
        "state": "on",
        "strength": 0.1,
        "clip": [0.8, 1.28],
        "apply_from_step": 1,
        "ttl_steps": 1,
    }
    perturbation = Perturbation(trainer.model, sigma=0.1)
    actuator = Actuator(perturbation, source=lambda: said, decay_steps=1)
    seen: list[tuple[int, bool, float]] = []

    def observe(batch: Observation) -> None:
        noisy = not torch.equal(batch.perturbed_BT, batch.clean_BT)
        seen.append((batch.step, noisy, round(trainer.epsilon_high, 4)))

    attach(trainer, perturbation, actuator=actuator, observe=observe)
    trainer.train()
    assert seen == [(0, False, 3.0)] * 2 + [(1, True, 0.28)] * 2 + [(2, False, 3.0)] * 2


def test_the_denominator_is_the_samplers_and_the_other_weight_is_one() -> None:
    infer = torch.tensor([[-1.0, math.nan]])
    inputs = {
        "sampling_per_token_logps": infer,
        "old_per_token_logps": torch.zeros(1, 2),
        "importance_sampling_ratio": torch.full((1, 2), 0.3),
        "advantages": torch.ones(1),
    }
    changed = over_sampler(inputs)
    assert changed["old_per_token_logps"].tolist() == [[-1.0, 0.0]]
    assert changed["importance_sampling_ratio"].tolist() == [[1.0, 1.0]]
    assert changed["advantages"] is inputs["advantages"]
    assert inputs["old_per_token_logps"].tolist() == [[0.0, 0.0]]


def test_a_trainer_without_sampler_log_probs_is_told_what_to_do() -> None:
    with pytest.raises(LossInputError, match="rollout_func"):
        over_sampler({"old_per_token_logps": torch.zeros(1, 2)})


def test_a_loss_in_a_fused_kernel_is_refused() -> None:
    trainer = SimpleNamespace(use_liger_kernel=True, compute_liger_loss=lambda: None)
    with pytest.raises(LossInputError, match="use_liger_kernel=True"):
        attach(trainer, SimpleNamespace())  # type: ignore[arg-type]


def test_evaluation_is_not_perturbed() -> None:
    calls: list[Any] = []
    trainer = SimpleNamespace(
        _compute_loss=lambda model, inputs: calls.append(inputs),
        _get_per_token_logps_and_entropies=None,
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    attach(trainer, SimpleNamespace(active=lambda **_: pytest.fail("perturbed")))  # type: ignore[arg-type]
    with torch.no_grad():
        trainer._compute_loss(None, {"untouched": True})
    assert calls == [{"untouched": True}]


def test_the_loop_example_learns() -> None:
    rewards = runpy.run_path(str(EXAMPLES / "loop.py"))["main"](steps=10)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
