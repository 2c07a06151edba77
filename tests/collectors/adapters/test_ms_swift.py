"""ms-swift's plug-in against sequences written by hand, in its frame: the last T tokens of every sequence."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta
from tailwatch_collectors.adapters import ms_swift
from tailwatch_collectors.batch import Batch
from tests.collectors.adapters.streams import arrived, created, point_at

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

# Places 0 .. 5 of the frame: where each response starts, with prompt before it and padding after it.
STARTS = (1, 3, 0)
MASKS = [[1, 1, 0, 1], [1, 1], [1, 1, 1, 1, 1, 1]]
ROLLOUT = [[-1.0, -2.0, 0.0, -3.0], [-0.5, -0.25], [-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]]
TRAIN = [[-1.5, -1.75, -9.0, -3.125], [-0.5, -0.5], [-0.2, -0.1, -0.5, -0.3, -0.5, -0.7]]
ADVANTAGES = (0.5, -0.5, 1.0)
WIDTH = 6


def _placed(rows: list[list[float]]) -> torch.Tensor:
    found = torch.full((len(rows), WIDTH), -0.011)  # prompt and padding have log-probs too
    for row, values in enumerate(rows):
        found[row, STARTS[row] : STARTS[row] + len(values)] = torch.tensor(values)
    return found


def _grpo_batch(**more: Any) -> Any:
    mask = torch.zeros(3, WIDTH, dtype=torch.bool)
    for row, values in enumerate(MASKS):
        mask[row, STARTS[row] : STARTS[row] + len(values)] = torch.tensor(values).bool()
    advantages = torch.tensor(ADVANTAGES)[:, None] * mask
    known = {
        "completion_mask": mask,
        "truncated_mask": torch.tensor([False, True, False]),
        "old_per_token_logps": _placed(TRAIN),
        "rollout_per_token_logps": _placed(ROLLOUT) * mask,
        "advantages": advantages,
    }
    return SimpleNamespace(**{**known, **more})


def _check(batch: Batch) -> None:
    assert batch.offsets_B1.tolist() == [0, 4, 6, 12]
    assert batch.mask_N is not None
    assert batch.turn_N is not None
    place = 0
    for row, mask in enumerate(MASKS):
        for t, counts in enumerate(mask):
            assert batch.infer_logprobs_N[place] == np.float32(ROLLOUT[row][t])
            assert batch.train_logprobs_N[place] == np.float32(TRAIN[row][t])
            assert batch.mask_N[place] == counts
            assert batch.turn_N[place] == (1 if (row, t) == (0, 3) else 0)
            place += 1
    assert batch.advantage_B is not None
    assert batch.advantage_B.tolist() == list(ADVANTAGES)


def test_responses_are_cut_out_of_the_frame() -> None:
    batch = Batch.from_arrays(BatchMeta(step=0), **ms_swift.columns(_grpo_batch()))
    _check(batch)
    assert batch.mask_post_N is None


def test_truncated_responses_are_rejected_where_they_are_filtered() -> None:
    batch = Batch.from_arrays(BatchMeta(step=0), **ms_swift.columns(_grpo_batch(), overlong_filter=True))
    _check(batch)
    assert batch.mask_N is not None
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [True, True, False, True, False, False] + [True] * 6


def test_a_sequence_without_a_response_is_left_out() -> None:
    mask = _grpo_batch().completion_mask
    mask[1] = False
    found = ms_swift.columns(_grpo_batch(completion_mask=mask, advantages=None))
    assert [len(row) for row in found["infer_logprobs"]] == [4, 6]
    assert "advantage" not in found


# --- the hook ---


class RolloutMixin:
    """The pipeline that GRPO inherits."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        return inputs


class Trainer(RolloutMixin):
    """swift's GRPOTrainer, as far as the hook goes."""

    def __init__(self, **arguments: Any) -> None:
        known = {"output_dir": "out/v0-run", "temperature": 0.9, "top_p": 0.9, "bf16": True, "use_vllm": True}
        self.args = SimpleNamespace(**{**known, "async_generate": False, **arguments})
        self.accelerator = SimpleNamespace(process_index=1, num_processes=2)
        self.model = SimpleNamespace(training=True)
        self.state = SimpleNamespace(global_step=6)
        self.overlong_filter = False


@pytest.fixture
def trainer_class(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Trainer]]:
    """A hooked trainer class."""
    point_at(service, monkeypatch)
    module: Any = ModuleType("grpo_trainer")
    module.GRPOTrainer = type("GRPOTrainer", (Trainer,), {})
    monkeypatch.setitem(__import__("sys").modules, "swift.rlhf_trainers.grpo_trainer", module)
    ms_swift.install(project="swift")
    yield module.GRPOTrainer
    ms_swift.late.finished()
    ms_swift.late.use(None)


def test_every_micro_batch_of_a_generation_is_a_part(trainer_class: type[Trainer], service: FakeService) -> None:
    inputs = [{"model_inputs": {}, "grpo_batch": _grpo_batch()} for _ in range(2)]
    assert trainer_class()._generate_and_score_completions(inputs) is inputs
    batches = arrived(ms_swift.late, service)
    assert [(one.meta.step, one.meta.part, one.meta.final, one.meta.rank) for one in batches] == [
        (6, 0, False, 1),
        (6, 1, True, 1),
    ]
    _check(batches[0])
    assert batches[0].infer_version_B is not None
    assert (batches[0].infer_version_B.tolist(), batches[0].meta.train_version) == ([6, 6, 6], 6)
    run = created(service)
    assert (run["project"], run["name"], run["logprobs_mode"], run["precision"]) == (
        "swift",
        "v0-run",
        "processed",
        "bf16",
    )
    assert not hasattr(RolloutMixin._generate_and_score_completions, "__wrapped__")


def test_generations_that_began_a_step_ago_have_no_known_version(
    trainer_class: type[Trainer], service: FakeService
) -> None:
    trainer_class(async_generate=True)._generate_and_score_completions([{"grpo_batch": _grpo_batch()}])
    (batch,) = arrived(ms_swift.late, service)
    assert batch.infer_version_B is None


def test_micro_batches_without_rollout_log_probs_are_left_out_and_named(
    trainer_class: type[Trainer], service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    without = {"grpo_batch": _grpo_batch(rollout_per_token_logps=None)}
    trainer_class()._generate_and_score_completions([{"grpo_batch": _grpo_batch()}, without])
    (batch,) = arrived(ms_swift.late, service)
    assert batch.meta.final
    assert caplog.text.count("use_vllm") == 1


def test_evaluation_is_not_recorded(trainer_class: type[Trainer]) -> None:
    trainer = trainer_class()
    trainer.model.training = False
    trainer._generate_and_score_completions([{"grpo_batch": _grpo_batch()}])
    assert ms_swift.late._collector is None


def test_nothing_that_goes_wrong_reaches_the_trainer(trainer_class: type[Trainer], swallow: None) -> None:
    inputs = [{"grpo_batch": _grpo_batch(completion_mask="no tensor")}]
    assert trainer_class()._generate_and_score_completions(inputs) is inputs
