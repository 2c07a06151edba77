"""ROLL's worker against sequences written by hand: full sequences, one position less, padded on the right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta, connect
from tailwatch_collectors.adapters import roll
from tailwatch_collectors.batch import Batch
from tests.collectors.adapters.streams import FLUSH_S, point_at

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

# Three sequences of seven places: prompt, response (with a tool's token), padding; prompts of unequal length.
PROMPTS = (3, 1, 2)
RESPONSES = [[11, 12, 13], [21, 22, 23, 24], [31]]
MASKS = [[1, 1, 1], [1, 0, 1, 1], [1]]
FINAL = [[0, 0, 0], [1, 0, 1, 1], [1]]
ROLLOUT = [[-1.0, -2.0, -3.0], [-0.5, 0.0, -0.25, -0.125], [-4.0]]
TRAIN = [[-1.5, -1.75, -3.125], [-0.5, -7.0, -0.5, -0.0625], [-4.5]]
UUIDS = ["u0", "u1", "u2"]
LENGTH = 7


def _placed(rows: list[list[Any]], *, shift: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, T] (shift 0), or [B, T-1] where place i belongs to token i + 1 (shift 1)."""
    found = torch.zeros(len(rows), LENGTH - shift, dtype=dtype)
    for row, values in enumerate(rows):
        start = PROMPTS[row] - shift
        found[row, start : start + len(values)] = torch.tensor(values, dtype=dtype)
    return found


def _data(**meta: Any) -> Any:
    batch = {
        "input_ids": _placed(RESPONSES, shift=0, dtype=torch.int64),
        "response_mask": _placed(MASKS, shift=0, dtype=torch.int64),
        "final_response_mask": _placed(FINAL, shift=1, dtype=torch.int64),
        "infer_logprobs": _placed(ROLLOUT, shift=1, dtype=torch.float32),
        "advantages": _placed([[0.5] * 3, [-0.5] * 4, [2.0]], shift=1, dtype=torch.float32),
    }
    batch["input_ids"][0, :3] = torch.tensor([7, 8, 9])
    others = {"sample_uuid": np.array(UUIDS, dtype=object), "domain": np.array(["math", "code", "math"], dtype=object)}
    return SimpleNamespace(batch=batch, non_tensor_batch=others, meta_info={"global_step": 5, **meta})


def _old() -> torch.Tensor:
    return _placed(TRAIN, shift=1, dtype=torch.float32)


def _check(batch: Batch) -> None:
    assert batch.offsets_B1.tolist() == [0, 3, 7, 8]
    assert batch.mask_N is not None
    assert batch.mask_post_N is not None
    assert batch.token_ids_N is not None
    assert batch.advantage_N is not None
    assert batch.turn_N is not None
    place = 0
    for row, response in enumerate(RESPONSES):
        for t, token in enumerate(response):
            assert batch.infer_logprobs_N[place] == np.float32(ROLLOUT[row][t])
            assert batch.train_logprobs_N[place] == np.float32(TRAIN[row][t])
            assert batch.token_ids_N[place] == token
            assert batch.mask_N[place] == MASKS[row][t]
            assert batch.mask_post_N[place] == FINAL[row][t]
            assert batch.advantage_N[place] == (0.5, -0.5, 2.0)[row]
            assert batch.turn_N[place] == (1 if row == 1 and t >= 2 else 0)
            place += 1
    assert (batch.seq_id, batch.source) == (("u0", "u1", "u2"), ("math", "code", "math"))


def test_responses_are_cut_out_of_shifted_sequences() -> None:
    data = _data()
    found = roll.columns(data.batch, old_log_probs=_old(), others=data.non_tensor_batch)
    _check(Batch.from_arrays(BatchMeta(step=0), **found))


def test_a_final_mask_as_long_as_the_sequences_is_shifted_too() -> None:
    data = _data()
    data.batch["final_response_mask"] = _placed(FINAL, shift=0, dtype=torch.int64)
    data.batch["prompt_id"] = torch.tensor([4, 4, 5])
    found = roll.columns(data.batch, old_log_probs=_old(), others=data.non_tensor_batch)
    batch = Batch.from_arrays(BatchMeta(step=0), **found)
    _check(batch)
    assert batch.prompt_id == ("4", "4", "5")


def test_a_sequence_without_a_response_is_left_out() -> None:
    data = _data()
    data.batch["response_mask"][1] = 0
    found = roll.columns(data.batch, old_log_probs=_old())
    assert [len(row) for row in found["infer_logprobs"]] == [3, 1]


# --- the worker ---


def _registered(function: Any) -> Any:
    function.scheduler_attributes = {"dispatch_mode": "DP"}
    return function


class ActorWorker:
    """ROLL's worker, as far as the tap goes."""

    def __init__(self, *, recompute: bool = False, asynchronous: float = 0, **rank: Any) -> None:
        known = {"tp_rank": 0, "cp_rank": 0, "dp_rank": 1, "dp_size": 2, "is_pipeline_last_stage": True}
        self.rank_info = SimpleNamespace(**{**known, **rank})
        self.pipeline_config = SimpleNamespace(
            exp_name="rlvr",
            enable_old_logprobs_recompute=recompute,
            async_generation_ratio=asynchronous,
            actor_infer=SimpleNamespace(generating_args=SimpleNamespace(temperature=0.99, top_p=0.9)),
        )

    def get_old_log_probs_with_cache(self, data: Any, log_probs: torch.Tensor) -> torch.Tensor:
        return log_probs.detach()

    @_registered
    def train_step(self, data: Any) -> str:
        """Two micro-batches of the same data."""
        for _ in range(2):
            self.get_old_log_probs_with_cache(data, _old().requires_grad_())
        return "metrics"


def _train(worker: type, service: FakeService, data: Any, **options: Any) -> list[Batch]:
    collector = connect(project="p", run="r", url=service.url, session="s", rank=1, world_size=2)
    made = roll.tapped(worker, collector=collector)(**options)
    assert made.train_step(data) == "metrics"
    assert collector.flush(FLUSH_S)
    collector.close()
    return [service.batches[key] for key in sorted(service.batches, key=lambda key: key[-1])]


def test_every_micro_batch_is_a_part_and_the_step_ends_with_training(service: FakeService) -> None:
    batches = _train(ActorWorker, service, _data())
    assert [(one.meta.step, one.meta.phase, one.meta.final, one.sequences) for one in batches] == [
        (5, "update", False, 3),
        (5, "update", False, 3),
        (5, "update", True, 0),
    ]
    _check(batches[0])
    assert batches[0].meta.train_version == 5
    assert batches[0].infer_version_B is not None
    assert batches[0].infer_version_B.tolist() == [5, 5, 5]


def test_recomputed_log_probs_are_of_the_rollout_and_stale_generation_has_no_known_version(
    service: FakeService,
) -> None:
    batch = _train(ActorWorker, service, _data(), recompute=True, asynchronous=1.0)[0]
    assert batch.meta.phase == "rollout"
    assert batch.infer_version_B is None


@pytest.mark.parametrize("rank", [{"tp_rank": 1}, {"cp_rank": 1}, {"is_pipeline_last_stage": False}])
def test_other_ranks_of_the_model_record_nothing(rank: dict[str, Any], service: FakeService) -> None:
    assert [one.sequences for one in _train(ActorWorker, service, _data(), **rank)] == []


def test_the_worker_stays_what_the_scheduler_registered() -> None:
    tapped = roll.tapped(ActorWorker)
    assert issubclass(tapped, ActorWorker)
    assert tapped.__name__ == "TapActorWorker"
    assert tapped.train_step.scheduler_attributes == {"dispatch_mode": "DP"}


def test_without_rollout_log_probs_the_setting_is_named(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    point_at(service, monkeypatch)
    data = _data()
    data.batch["infer_logprobs"] = torch.zeros(0)
    assert _train(ActorWorker, service, data) == []
    assert caplog.text.count("generating_args.logprobs") == 1


def test_nothing_that_goes_wrong_reaches_the_worker(service: FakeService, swallow: None) -> None:
    data = _data()
    data.batch["response_mask"] = "no tensor"
    assert _train(ActorWorker, service, data) == []
