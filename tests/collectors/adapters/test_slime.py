"""slime's and miles' functions, against samples written by hand, alone and with context parallelism."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta
from tailwatch_collectors.adapters import slime
from tailwatch_collectors.batch import Batch
from tests.collectors.adapters.streams import arrived, created, point_at

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

# Two samples of this rank: prompts of two tokens and one; the first response has a tool's token in it.
TOKENS = [[1, 2, 11, 12, 13, 14], [9, 21, 22]]
RESPONSES = (4, 2)
MASKS = [[1, 1, 0, 1], [1, 1]]
ROLLOUT = [[-1.0, -2.0, 0.0, -3.0], [-0.5, -0.25]]
TRAIN = [[-1.5, -1.75, -9.0, -3.125], [-0.5, -0.5]]


def _args(**more: Any) -> SimpleNamespace:
    known = {
        "wandb_project": "math",
        "wandb_group": "qwen",
        "rollout_temperature": 0.8,
        "rollout_top_p": 1.0,
        "bf16": True,
        "n_samples_per_prompt": 2,
        "start_rollout_id": 0,
        "use_tis": False,
        "get_mismatch_metrics": False,
    }
    return SimpleNamespace(**{**known, **more})


def _data(**more: Any) -> dict[str, Any]:
    """What a rank of slime holds before it trains."""
    data: dict[str, Any] = {
        "partition": [5, 2],
        "tokens": [torch.tensor(row) for row in TOKENS],
        "response_lengths": list(RESPONSES),
        "total_lengths": [6, 3],
        "loss_masks": [torch.tensor(row, dtype=torch.int32) for row in MASKS],
        "rollout_log_probs": [torch.tensor(row) for row in ROLLOUT],
        "log_probs": [torch.tensor(row) for row in TRAIN],
        "advantages": [torch.full((4,), 0.5), torch.full((2,), -0.5)],
        "rewards": [0.7, -0.7],
        "raw_reward": [9.0] * 6,
        "local_raw_reward": [1.0, 0.0],
        "sample_indices": [13, 10],
        "source_names": ["math", "code"],
    }
    return {**data, **more}


def _check(batch: Batch) -> None:
    assert batch.offsets_B1.tolist() == [0, 4, 6]
    assert batch.mask_N is not None
    place = 0
    for row, length in enumerate(RESPONSES):
        for t in range(length):
            assert batch.infer_logprobs_N[place] == np.float32(ROLLOUT[row][t])
            assert batch.train_logprobs_N[place] == np.float32(TRAIN[row][t])
            assert batch.mask_N[place] == MASKS[row][t]
            place += 1


def _check_rollout(batch: Batch) -> None:
    _check(batch)
    assert batch.token_ids_N is not None
    assert batch.token_ids_N.tolist() == [11, 12, 13, 14, 21, 22]
    assert batch.turn_N is not None
    assert batch.turn_N.tolist() == [0, 0, 0, 1, 0, 0]
    assert batch.advantage_B is not None
    assert batch.advantage_B.tolist() == [0.5, -0.5]
    assert batch.reward_B is not None
    assert batch.reward_B.tolist() == [1.0, 0.0]
    assert (batch.seq_id, batch.prompt_id, batch.source) == (("7.5", "7.2"), ("6", "5"), ("math", "code"))


def test_samples_are_responses_in_order() -> None:
    _check_rollout(Batch.from_arrays(BatchMeta(step=7), **slime.columns(_data(), rollout_id=7, samples_per_prompt=2)))


def test_rewards_that_are_no_numbers_are_left_out() -> None:
    found = slime.columns(_data(local_raw_reward=[{"acc": 1}, {"acc": 0}]), rollout_id=0)
    assert "reward" not in found
    assert "prompt_id" not in found
    assert slime.columns(_data(local_raw_reward=None), rollout_id=0)["reward"] == [0.7, -0.7]


# --- the functions, in a process of their own making ---


@pytest.fixture(autouse=True)
def training(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training process that has just started."""
    point_at(service, monkeypatch)
    monkeypatch.setattr(slime, "progress", slime._Progress())
    yield
    slime.late.finished()
    slime.late.use(None)


def _modules(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    for name, content in modules.items():
        dotted = name.replace("__", ".")
        module = ModuleType(dotted)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, dotted, module)


def _megatron(**ranks: int) -> dict[str, Any]:
    known = {"dp": 1, "dp_size": 2, "cp": 0, "cp_size": 1, "tp": 0, "last": 1, **ranks}
    return {
        "get_data_parallel_rank": lambda with_context_parallel: known["dp"],
        "get_data_parallel_world_size": lambda with_context_parallel: known["dp_size"],
        "get_context_parallel_rank": lambda: known["cp"],
        "get_context_parallel_world_size": lambda: known["cp_size"],
        "get_tensor_model_parallel_rank": lambda: known["tp"],
        "is_pipeline_last_stage": lambda: bool(known["last"]),
    }


def test_a_rollout_of_slime(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    _modules(monkeypatch, megatron__core__parallel_state=_megatron())
    data = _data()
    slime.rollout_data_postprocess(_args(), 7, data)
    (batch,) = arrived(slime.late, service)
    _check_rollout(batch)
    assert (batch.meta.step, batch.meta.phase, batch.meta.final) == (7, "rollout", True)
    assert (batch.meta.rank, batch.meta.world_size, batch.meta.train_version) == (1, 2, 7)
    assert batch.infer_version_B is None  # which weights sampled it stays with the rollout side
    run = created(service)
    assert (run["project"], run["name"], run["temperature"], run["precision"]) == ("math", "qwen", 0.8, "bf16")
    assert all(torch.equal(row, torch.tensor(truth)) for row, truth in zip(data["log_probs"], TRAIN, strict=True))


@pytest.mark.parametrize("ranks", [{"tp": 1}, {"last": 0}])
def test_other_ranks_of_the_model_record_nothing(
    ranks: dict[str, int], service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    _modules(monkeypatch, megatron__core__parallel_state=_megatron(**ranks))
    slime.rollout_data_postprocess(_args(), 7, _data())
    assert slime.late._collector is None


def test_skipped_log_probs_are_recorded_in_the_loss(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    data = _data()
    del data["log_probs"]
    loss = torch.tensor([1.0, 2.0])
    for rollout_id in (3, 4):
        slime.rollout_data_postprocess(_args(), rollout_id, data)
        for rows in ([0], [1]):
            pg_loss, masks, metrics = slime.tis_function(_args(), pg_loss=loss, **_micro_batch(rows))
            assert pg_loss is loss
            assert metrics == {}
            assert masks[0].tolist() == MASKS[rows[0]]
    assert caplog.text.count("--custom-tis-function-path") == 1
    batches = arrived(slime.late, service)
    # The next rollout says that the one before is over: a part without rows.
    assert [(one.meta.step, one.meta.phase, one.meta.part, one.meta.final, one.sequences) for one in batches] == [
        (3, "update", 0, False, 1),
        (3, "update", 1, False, 1),
        (3, "update", 2, True, 0),
        (4, "update", 0, False, 1),
        (4, "update", 1, False, 1),
    ]
    assert batches[1].train_logprobs_N.tolist() == TRAIN[1]


def _micro_batch(rows: list[int]) -> dict[str, Any]:
    data = _data()
    return {
        "train_log_probs": [data["log_probs"][row] for row in rows],
        "rollout_log_probs": [data["rollout_log_probs"][row] for row in rows],
        "loss_masks": [data["loss_masks"][row] for row in rows],
        "total_lengths": [data["total_lengths"][row] for row in rows],
        "response_lengths": [data["response_lengths"][row] for row in rows],
    }


def test_a_rollout_that_is_recorded_is_not_recorded_again_in_the_loss(service: FakeService) -> None:
    args = _args(get_mismatch_metrics=True)
    slime.rollout_data_postprocess(args, 0, _data())
    slime.tis_function(args, pg_loss=torch.ones(6), **_micro_batch([0, 1]))
    assert len(arrived(slime.late, service)) == 1


def test_the_frameworks_own_correction_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def vanilla(args: Any, *, pg_loss: Any, **kwargs: Any) -> Any:
        return pg_loss * 2, kwargs["loss_masks"], {"tis": pg_loss}

    _modules(monkeypatch, slime={}, slime__backends={}, slime__backends__megatron_utils={})
    _modules(monkeypatch, slime__backends__megatron_utils__loss={"vanilla_tis_function": vanilla})
    pg_loss, _, metrics = slime.tis_function(_args(use_tis=True), pg_loss=torch.ones(6), **_micro_batch([0, 1]))
    assert pg_loss.tolist() == [2.0] * 6
    assert list(metrics) == ["tis"]


def _miles_state(**ranks: int) -> Any:
    known = {"dp": 0, "dp_size": 1, "cp": 0, "cp_size": 1, "tp": 0, **ranks}
    return SimpleNamespace(
        effective_dp=SimpleNamespace(rank=known["dp"], size=known["dp_size"]),
        cp=SimpleNamespace(rank=known["cp"], size=known["cp_size"]),
        tp=SimpleNamespace(rank=known["tp"], size=2),
        is_pp_last_stage=True,
    )


def test_miles_hands_over_arguments_only_and_is_recorded_in_the_loss(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _miles_state(dp=3, dp_size=4)
    _modules(monkeypatch, miles={}, miles__backends__training_utils__parallel={"get_parallel_state": lambda: state})
    args = _args(start_rollout_id=20, get_mismatch_metrics=True)
    for _ in range(2):
        slime.rollout_data_postprocess(args)
        slime.tis_function(args, pg_loss=torch.ones(6), parallel_state=state, max_seq_lens=None, **_micro_batch([0, 1]))
    batches = [one for one in arrived(slime.late, service) if one.sequences]
    assert [(one.meta.step, one.meta.phase, one.meta.rank, one.meta.world_size) for one in batches] == [
        (20, "rollout", 3, 4),
        (21, "rollout", 3, 4),
    ]
    _check(batches[0])
    assert created(service)["framework"].startswith("miles")


def test_context_parallel_slices_are_made_whole_by_every_rank(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two ranks: the first has the outer tokens of the first response and the second of the second, the other the rest.
    mine = {0: ([0, 3], [1]), 1: ([1, 2], [0])}
    gathered: list[tuple[int, int]] = []

    def sliced(rows: list[list[float]], rank: int) -> list[torch.Tensor]:
        return [torch.tensor([row[t] for t in places]) for row, places in zip(rows, mine[rank], strict=True)]

    whole = {
        tuple(slice_.tolist()): torch.tensor(row)
        for rows in (ROLLOUT, TRAIN, [[0.5] * 4, [-0.5] * 2])
        for rank in (0, 1)
        for slice_, row in zip(sliced(rows, rank), rows, strict=True)
    }

    def all_gather_with_cp(tensor: torch.Tensor, total_length: int, response_length: int) -> torch.Tensor:
        gathered.append((total_length, response_length))
        return whole[tuple(tensor.tolist())].clone().requires_grad_()

    for rank in (1, 0):
        _modules(
            monkeypatch,
            megatron__core__parallel_state=_megatron(cp=rank, cp_size=2),
            slime__backends__megatron_utils__cp_utils={"all_gather_with_cp": all_gather_with_cp},
        )
        data = _data(rollout_log_probs=sliced(ROLLOUT, rank), log_probs=sliced(TRAIN, rank))
        data["advantages"] = sliced([[0.5] * 4, [-0.5] * 2], rank)
        slime.rollout_data_postprocess(_args(), 7, data)
        # The same collectives on both ranks; only the first records.
        assert gathered == [(6, 4), (3, 2)] * 3
        gathered.clear()
        assert (slime.late._collector is not None) == (rank == 0)
    (batch,) = arrived(slime.late, service)
    _check_rollout(batch)


def test_a_rank_without_a_service_still_takes_part(monkeypatch: pytest.MonkeyPatch, swallow: None) -> None:
    monkeypatch.setenv("TAILWATCH_URL", "not a url")
    calls: list[int] = []

    def all_gather_with_cp(tensor: torch.Tensor, total_length: int, response_length: int) -> torch.Tensor:
        calls.append(total_length)
        return torch.zeros(response_length)

    _modules(
        monkeypatch,
        megatron__core__parallel_state=_megatron(cp=0, cp_size=2),
        slime__backends__megatron_utils__cp_utils={"all_gather_with_cp": all_gather_with_cp},
    )
    slime.rollout_data_postprocess(_args(), 7, _data())
    assert len(calls) == 6


def test_nothing_that_goes_wrong_reaches_training(swallow: None) -> None:
    slime.rollout_data_postprocess(_args(), 0, _data(loss_masks=None))
    loss = torch.ones(6)
    broken = {**_micro_batch([0, 1]), "response_lengths": None}
    slime.progress.recorded = False
    assert slime.tis_function(_args(), pg_loss=loss, **broken)[0] is loss
