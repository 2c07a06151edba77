"""TRL's adapter: against sums done by hand, against a real GRPOTrainer, and against TRL's own metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta, ConfigurationError
from tailwatch_collectors.adapters import trl
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.guard import Guard
from tests.e2e.conftest import service as running_service  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
FLUSH_S = 60.0


class Recorder:
    """A collector that only remembers."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.errors = 0
        self.guard = Guard(on_error=self._count)

    def _count(self) -> None:
        self.errors += 1

    def record(self, **columns: Any) -> None:
        self.calls.append(columns)


def _batch(columns: dict[str, Any]) -> Batch:
    return Batch.from_arrays(BatchMeta(step=0), **columns)


def _inputs(**more: Any) -> dict[str, Any]:
    """Three completions of 4, 2 and 3 tokens, right-padded to 5; the second has a token vLLM could not score."""
    infer = torch.tensor([[-1.0, -2.0, -3.0, -4.0, 0.0], [-0.5, math.nan, 0.0, 0.0, 0.0], [-0.1, -0.2, -0.3, 0.0, 0.0]])
    return {
        "completion_ids": torch.tensor([[11, 12, 13, 14, 0], [21, 22, 0, 0, 0], [31, 32, 33, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        "sampling_per_token_logps": infer,
        "old_per_token_logps": infer.nan_to_num(-0.7) + 0.25,
        "advantages": torch.tensor([0.5, -1.0, 0.25]),
        **more,
    }


# --- the columns, against loops ---


def test_columns_are_the_completions_in_order() -> None:
    inputs = _inputs()
    batch = _batch(trl.columns(inputs, train_logprobs=inputs["old_per_token_logps"]))
    infer: list[float] = []
    train: list[float] = []
    ids: list[int] = []
    for row, length in enumerate((4, 2, 3)):
        for t in range(length):
            infer.append(inputs["sampling_per_token_logps"][row, t].item())
            train.append(inputs["old_per_token_logps"][row, t].item())
            ids.append(int(inputs["completion_ids"][row, t]))
    np.testing.assert_array_equal(batch.infer_logprobs_N, np.array(infer, np.float32))
    np.testing.assert_array_equal(batch.train_logprobs_N, np.array(train, np.float32))
    assert batch.lengths_B.tolist() == [4, 2, 3]
    assert batch.token_ids_N is not None
    assert batch.token_ids_N.tolist() == ids
    assert batch.advantage_B is not None
    assert batch.advantage_B.tolist() == [0.5, -1.0, 0.25]
    assert batch.mask_N is not None
    assert batch.mask_N.all()
    assert batch.mask_post_N is None
    assert batch.turn_N is None


def test_tool_tokens_are_masked_and_counted_as_turns() -> None:
    # The first sequence: two tokens, a tool's one, another; the others have no tool. The pad value of the mask is 1.
    tool_mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])
    inputs = _inputs(tool_mask=tool_mask)
    batch = _batch(trl.columns(inputs, train_logprobs=inputs["old_per_token_logps"]))
    assert batch.lengths_B.tolist() == [4, 2, 3]
    assert batch.mask_N is not None
    assert batch.mask_N.tolist() == [True, True, False, True, True, True, True, True, False]
    assert batch.turn_N is not None
    assert batch.turn_N.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_a_ratio_of_zero_is_a_rejection_only_where_the_mode_masks() -> None:
    token = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0, 1.0]])
    inputs = _inputs(importance_sampling_ratio=token)
    batch = _batch(trl.columns(inputs, train_logprobs=inputs["old_per_token_logps"], rejects=True))
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [True, False, True, True, True, True, True, True, False]
    sequence = _inputs(importance_sampling_ratio=torch.tensor([[0.0], [1.0], [2.5]]))
    batch = _batch(trl.columns(sequence, train_logprobs=sequence["old_per_token_logps"], rejects=True))
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [False] * 4 + [True] * 5
    assert "mask_post" not in trl.columns(sequence, train_logprobs=sequence["old_per_token_logps"])


def test_a_truncated_completion_that_is_masked_out_counts_nothing() -> None:
    inputs = _inputs()
    inputs["completion_mask"][0] = 0
    batch = _batch(trl.columns(inputs, train_logprobs=inputs["old_per_token_logps"]))
    assert batch.lengths_B.tolist() == [0, 2, 3]


def test_rewards_are_weighted_where_a_function_spoke() -> None:
    nan = math.nan
    found = trl.generation(
        "7.3",
        infer_version=6,
        rank=1,
        batch_size=2,
        num_generations=2,
        rewards_per_func=torch.tensor([[9.0, 9.0], [9.0, 9.0], [1.0, 4.0], [nan, 2.0]]),
        reward_weights=torch.tensor([1.0, 0.5]),
        examples=[{"topic": "a"}, {"topic": "b"}],
        source="topic",
    )
    assert found.reward == (3.0, 1.0)
    assert found.prompt_id == ("7.3.1", "7.3.1")
    assert found.seq_id == ("7.3.2", "7.3.3")
    assert found.source == ("a", "b")
    assert found.infer_version == 6


def test_a_sequence_that_nobody_scored_has_no_reward() -> None:
    scores = torch.full((1, 2), math.nan)
    found = trl.generation("0", infer_version=0, rank=0, batch_size=1, num_generations=1, rewards_per_func=scores)
    assert found.reward is not None
    assert math.isnan(found.reward[0])


def test_rows_find_their_generation_whatever_order_they_come_in() -> None:
    generations = {
        number: trl.generation(
            f"{number}", infer_version=number, rank=0, batch_size=3, num_generations=3, rewards_per_func=rewards
        )
        for number, rewards in ((4, torch.tensor([[0.0], [1.0], [2.0]])), (5, torch.tensor([[3.0], [4.0], [5.0]])))
    }
    found = trl.per_sequence(generations, [5 * trl.ROWS + 1, 4 * trl.ROWS + 2, 5 * trl.ROWS])
    assert found == {
        "infer_version": [5, 4, 5],
        "reward": [4.0, 2.0, 3.0],
        "prompt_id": ["5.0", "4.0", "5.0"],
        "seq_id": ["5.1", "4.2", "5.0"],
    }
    assert trl.per_sequence(generations, [6 * trl.ROWS]) == {}
    assert trl.per_sequence(generations, []) == {}


# --- the hooks, on a trainer that is none ---


class Trainer:
    """What the hooks look at."""

    def __init__(self, output: dict[str, Any], *, steps_per_generation: int = 2) -> None:
        self.output = output
        self.model = SimpleNamespace(training=True)
        self.state = SimpleNamespace(global_step=3)
        self.accelerator = SimpleNamespace(process_index=0, num_processes=1)
        self.args = SimpleNamespace(gradient_accumulation_steps=2, steps_per_generation=steps_per_generation)
        self.num_iterations = 1
        self.num_generations = 3
        self._step = 6

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        return self.output

    def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Any) -> tuple[Any, ...]:
        return input_ids * 1.0, input_ids * 2.0, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> str:
        self._get_per_token_logps_and_entropies(model, inputs["completion_ids"])
        self._get_per_token_logps_and_entropies(model, inputs["completion_ids"] * 10)
        return "loss"


def _attached(trainer: Trainer, **options: Any) -> Recorder:
    recorder = Recorder()
    trl.attach(trainer, collector=recorder, **options)  # type: ignore[arg-type]
    return recorder


def test_a_generation_is_recorded_once_and_its_tensors_are_left_alone() -> None:
    output = _inputs()
    before = {name: value.clone() for name, value in output.items()}
    trainer = Trainer(output)
    recorder = _attached(trainer)
    assert trainer._generate_and_score_completions([{}, {}, {}]) is output
    (call,) = recorder.calls
    assert (call["step"], call["phase"], call["final"], call["train_version"]) == (3, "rollout", True, 3)
    assert "infer_version" not in call  # a rollout_func's sampler may be as old as it likes
    assert all(torch.equal(output[name].nan_to_num(9.0), before[name].nan_to_num(9.0)) for name in before)
    # Inside the loss, nothing: its log-probs are the ones that were recomputed, or moved on from them.
    assert trainer._compute_loss(None, output) == "loss"
    assert len(recorder.calls) == 1


def test_the_loss_is_recorded_where_nothing_was_recomputed() -> None:
    output = _inputs()
    del output["old_per_token_logps"]
    trainer = Trainer(output)
    recorder = _attached(trainer)
    batch = trainer._generate_and_score_completions([{}, {}, {}])
    assert recorder.calls == []
    shuffled = {name: value.flip(0) for name, value in batch.items()}
    finals = []
    for step in (6, 7):
        trainer._step = step
        trainer._compute_loss(None, shuffled)
        finals.append(recorder.calls[-1]["final"])
    assert finals == [False, True]
    call = recorder.calls[0]
    assert call["phase"] == "update"
    assert call["seq_id"] == ["3.0.2", "3.0.1", "3.0.0"]
    assert torch.equal(call["train_logprobs"], shuffled["completion_ids"] * 1.0)
    assert torch.equal(call["entropy"], shuffled["completion_ids"] * 2.0)


@pytest.mark.parametrize(("every", "accumulation", "finals"), [(2, 2, [True]), (1, 2, [False, True]), (4, 2, [True])])
def test_the_last_generation_of_a_step_is_final(every: int, accumulation: int, finals: list[bool]) -> None:
    trainer = Trainer(_inputs(), steps_per_generation=every)
    trainer.args.gradient_accumulation_steps = accumulation
    recorder = _attached(trainer)
    for number in range(len(finals)):
        trainer._step = accumulation * 5 + number * every
        trainer._generate_and_score_completions([{}, {}, {}])
    assert [call["final"] for call in recorder.calls] == finals


def test_evaluation_is_not_recorded() -> None:
    trainer = Trainer(_inputs())
    recorder = _attached(trainer, update=True)
    trainer.model.training = False
    batch = trainer._generate_and_score_completions([{}, {}, {}])
    trainer._compute_loss(None, batch)
    assert recorder.calls == []


def test_without_sampling_log_probs_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    output = _inputs()
    del output["sampling_per_token_logps"]
    trainer = Trainer(output)
    recorder = _attached(trainer, update=True)
    for _ in range(2):
        trainer._compute_loss(None, trainer._generate_and_score_completions([{}, {}, {}]))
    assert recorder.calls == []
    assert caplog.text.count("rollout_func") == 1


def test_nothing_that_goes_wrong_reaches_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILWATCH_SWALLOW", "1")
    output = _inputs()
    output["completion_mask"] = "no tensor"
    trainer = Trainer(output)
    recorder = _attached(trainer, update=True)
    assert trainer._generate_and_score_completions([{}]) is output
    del output["completion_mask"]
    assert trainer._compute_loss(None, output) == "loss"
    assert recorder.errors == 2
    assert recorder.calls == []


def test_the_trainers_own_errors_pass() -> None:
    trainer = Trainer(_inputs())
    trainer._compute_loss = lambda model, inputs: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    _attached(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer._compute_loss(None, _inputs())


def test_taking_it_off_leaves_nothing() -> None:
    trainer = Trainer(_inputs())
    recorder = Recorder()
    undo = trl.attach(trainer, collector=recorder)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="attached already"):
        trl.attach(trainer, collector=recorder)  # type: ignore[arg-type]
    undo()
    assert not set(vars(trainer)) & {"_compute_loss", "_generate_and_score_completions"}
    trainer._generate_and_score_completions([{}, {}, {}])
    assert recorder.calls == []


def test_another_trainer_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"SimpleNamespace .* no _generate_and_score_completions"):
        trl.attach(SimpleNamespace())


# --- a real GRPOTrainer ---


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Makes trainers whose inference engine is a fake one."""
    pytest.importorskip("trl")
    from trl.trainer import grpo_trainer

    from tests.collectors.adapters import tiny_trl

    def make(**arguments: Any) -> Any:
        monkeypatch.setattr(grpo_trainer, "VLLMGeneration", tiny_trl.FakeEngine)
        return tiny_trl.make_trainer(tmp_path / "trl", **arguments)

    return make


@quiet
@pytest.mark.slow
def test_numbers_are_those_trl_logs(tiny: Callable[..., Any], service: FakeService) -> None:
    trainer = tiny(use_vllm=True, vllm_mode="colocate", vllm_importance_sampling_mode="token_truncate")
    trl.attach(trainer, url=service.url, project="p", run="r", update=True, source="topic")
    collector = trainer._tailwatch._collector
    trainer.train()
    assert collector.flush(FLUSH_S)
    logged = [entry for entry in trainer.state.log_history if "sampling/sampling_logp_difference/mean" in entry]
    assert len(logged) == 2
    for step, entry in enumerate(logged):
        batch = service.batches[(step, "rollout", 0, "train", 0, 0)]
        d = (batch.train_logprobs_N - batch.infer_logprobs_N)[batch.mask_N].astype(np.float64)
        assert np.abs(d).mean() == pytest.approx(entry["sampling/sampling_logp_difference/mean"], rel=1e-4)
        assert np.abs(d).max() == pytest.approx(entry["sampling/sampling_logp_difference/max"], rel=1e-5)
        assert np.exp(d).min() == pytest.approx(entry["sampling/importance_sampling_ratio/min"], rel=1e-4)
        assert np.exp(d).clip(max=3.0).mean() == pytest.approx(
            entry["sampling/importance_sampling_ratio/mean"], rel=1e-4
        )
        assert np.abs(d).max() > 1e-3  # there is something to see
        assert batch.reward_B is not None
        assert batch.reward_B.mean() == pytest.approx(entry["reward"], rel=1e-4)
        assert batch.infer_version_B is not None
        assert (batch.infer_version_B.tolist(), batch.meta.train_version) == ([step] * 8, step)
        assert batch.source is not None
        assert set(batch.source) <= {"numbers", "speech"}
        # The loss saw the same sequences, in another order and in two parts, at the same weights.
        parts = [service.batches[(step, "update", 0, "train", 0, part)] for part in range(2)]
        assert [part.meta.final for part in parts] == [False, True]
        rollout = _by_name([batch])
        update = _by_name(parts)
        assert set(update) == set(rollout)
        for name, (infer_T, train_T, reward) in update.items():
            np.testing.assert_array_equal(infer_T, rollout[name][0])
            np.testing.assert_allclose(train_T, rollout[name][1], atol=2e-5)
            assert reward == rollout[name][2]
    assert len(service.batches) == 6


def _by_name(batches: list[Batch]) -> dict[str, tuple[Any, Any, float]]:
    found = {}
    for batch in batches:
        assert batch.seq_id is not None
        assert batch.reward_B is not None
        for row, name in enumerate(batch.seq_id):
            cut = slice(batch.offsets_B1[row], batch.offsets_B1[row + 1])
            found[name] = batch.infer_logprobs_N[cut], batch.train_logprobs_N[cut], float(batch.reward_B[row])
    return found


@quiet
@pytest.mark.slow
def test_several_turns_of_a_rollout_func_and_generations_used_twice(
    tiny: Callable[..., Any], service: FakeService
) -> None:
    from tests.collectors.adapters import tiny_trl

    trainer = tiny(rollout_func=tiny_trl.rollout, num_iterations=2, max_steps=2)
    trl.attach(trainer, url=service.url, project="p", run="r")
    trainer.train()
    assert trainer._tailwatch._collector.flush(FLUSH_S)
    # One generation for both optimiser steps; its old log-probs were recomputed, for it is used again.
    assert sorted(service.batches) == [(0, "rollout", 0, "train", 0, 0)]
    batch = service.batches[(0, "rollout", 0, "train", 0, 0)]
    assert batch.mask_N is not None
    assert batch.turn_N is not None
    assert batch.infer_version_B is None
    for row in range(batch.sequences):
        cut = slice(batch.offsets_B1[row], batch.offsets_B1[row + 1])
        assert batch.mask_N[cut].tolist() == [True] * 4 + [False] * 3 + [True] * 3
        assert batch.turn_N[cut].tolist() == [0] * 7 + [1] * 3
        d = (batch.train_logprobs_N - batch.infer_logprobs_N)[cut][batch.mask_N[cut]]
        assert np.abs(d).max() < 0.02  # aligned: only the precision differs; between tokens it is ten times as much


@quiet
@pytest.mark.slow
@pytest.mark.skipif(find_spec("tailwatch_service") is None, reason="`make test-adapters` has TRL without the service")
def test_two_lines_and_the_service_has_trls_numbers(
    tiny: Callable[..., Any],
    running_service: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TAILWATCH_URL", running_service)
    monkeypatch.setenv("TAILWATCH_SPOOL_DIR", str(tmp_path / "spool"))
    trainer = tiny(use_vllm=True, vllm_mode="colocate", vllm_importance_sampling_mode="token_truncate")

    import tailwatch_collectors.adapters.trl

    tailwatch_collectors.adapters.trl.attach(trainer)

    trainer.train()
    trainer._tailwatch._collector.close(FLUSH_S)
    (run,) = httpx.get(f"{running_service}/api/v1/runs").json()["runs"]
    assert (run["project"], run["name"]) == ("trl", "tiny")
    assert run["framework"].startswith("trl ")
    assert (run["temperature"], run["logprobs_mode"], run["precision"]) == (1.0, "processed", "float32")
    names = "log_ratio_abs_mean,log_ratio_min,log_ratio_max,ratio_min,ratio_mean,reward_mean,lag_mean"
    answer = httpx.get(f"{running_service}/api/v1/runs/{run['run_id']}/series", params={"metrics": names}).json()
    logged = [entry for entry in trainer.state.log_history if "sampling/sampling_logp_difference/mean" in entry]
    assert answer["steps"] == [0, 1]
    for step, entry in enumerate(logged):
        ours = {name: values[step] for name, values in answer["metrics"].items()}
        assert ours["log_ratio_abs_mean"] == pytest.approx(entry["sampling/sampling_logp_difference/mean"], rel=1e-4)
        largest = max(-ours["log_ratio_min"], ours["log_ratio_max"])
        assert largest == pytest.approx(entry["sampling/sampling_logp_difference/max"], rel=1e-4)
        assert ours["ratio_min"] == pytest.approx(entry["sampling/importance_sampling_ratio/min"], rel=1e-4)
        assert ours["ratio_mean"] == pytest.approx(entry["sampling/importance_sampling_ratio/mean"], rel=1e-4)
        assert ours["reward_mean"] == pytest.approx(entry["reward"], rel=1e-4)
        assert ours["lag_mean"] == 0.0
