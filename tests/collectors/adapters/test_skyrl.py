"""SkyRL's callback against sequences written by hand and padded as SkyRL pads them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta
from tailwatch_collectors.adapters import skyrl
from tailwatch_collectors.batch import Batch
from tests.collectors.adapters.streams import arrived, created, point_at

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

PROMPTS = [[1, 2, 3], [1, 2], [4]]
RESPONSES = [[11, 12, 13, 14], [21, 22], [31, 32, 33]]
MASKS = [[1, 1, 0, 1], [1, 1], [0, 1, 1]]
ROLLOUT = [[-1.0, -2.0, 0.0, -3.0], [-0.5, -0.25], [0.0, -0.125, -0.75]]
TRAIN = [[-1.5, -1.75, -9.0, -3.125], [-0.5, -0.5], [-8.0, -0.25, -1.0]]
ADVANTAGES = [0.5, -0.5, 1.0]


class TrainingInputBatch(dict[str, Any]):
    """A dict of tensors with metadata beside them."""

    metadata: dict[str, Any]


def _right(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[B, R], aligned on the right, zeros on the left."""
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=dtype)


def _batch(*, pad_size: int = 0) -> TrainingInputBatch:
    sequences = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    batch = TrainingInputBatch(
        sequences=_right(sequences, torch.int64),
        response_mask=_right([[1] * len(row) for row in RESPONSES], torch.int64),
        loss_mask=_right(MASKS),
        rollout_logprobs=_right(ROLLOUT),
        action_log_probs=_right(TRAIN),
        advantages=_right([[value] * len(row) for value, row in zip(ADVANTAGES, RESPONSES, strict=True)]),
        values=None,
    )
    for name, value in batch.items():
        if value is not None and pad_size:
            copies = value[[0] * pad_size]
            batch[name] = torch.cat([value, torch.zeros_like(copies) if name == "loss_mask" else copies])
    batch.metadata = {"pad_size": pad_size, "policy_prompt_boundaries": [(0, 2), (2, 3)]}
    return batch


def _check(batch: Batch) -> None:
    assert batch.offsets_B1.tolist() == [0, 4, 6, 9]
    assert batch.mask_N is not None
    assert batch.token_ids_N is not None
    assert batch.turn_N is not None
    place = 0
    for row, response in enumerate(RESPONSES):
        for t, token in enumerate(response):
            assert batch.infer_logprobs_N[place] == np.float32(ROLLOUT[row][t])
            assert batch.train_logprobs_N[place] == np.float32(TRAIN[row][t])
            assert batch.token_ids_N[place] == token
            assert batch.mask_N[place] == MASKS[row][t]
            assert batch.turn_N[place] == (1 if (row, t) == (0, 3) else 0)
            place += 1
    assert batch.advantage_B is not None
    assert batch.advantage_B.tolist() == ADVANTAGES


@pytest.mark.parametrize("pad_size", [0, 1, 3])
def test_right_aligned_rows_and_copies_that_fill_up(pad_size: int) -> None:
    batch = _batch(pad_size=pad_size)
    found = skyrl.columns(batch, metadata=batch.metadata)
    _check(Batch.from_arrays(BatchMeta(step=0), **found))
    assert found["prompt_id"] == ["0", "0", "1"]


def test_boundaries_that_do_not_cover_the_rows_name_no_prompts() -> None:
    batch = _batch()
    assert "prompt_id" not in skyrl.columns(batch, metadata={"policy_prompt_boundaries": [(0, 2)]})
    assert "prompt_id" not in skyrl.columns(batch)


# --- the callback ---


def _trainer() -> Any:
    sampling = {"temperature": 0.7, "top_p": 0.95}
    trainer = {"project_name": "skyrl", "run_name": "test_run"}
    return SimpleNamespace(cfg={"trainer": trainer, "generator": {"sampling_params": sampling}})


def _event(batch: Any, *, step: int = 1) -> Any:
    return SimpleNamespace(global_step=step, batch=batch, metrics={})


def test_steps_are_recorded_and_the_run_ends(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(service, monkeypatch)
    callback, trainer = skyrl.Callback(), _trainer()
    for event in (
        "on_train_start",
        "on_epoch_start",
        "on_step_start",
        "on_eval_start",
        "on_eval_end",
        "on_save",
        "on_log",
    ):
        getattr(callback, event)(trainer, _event(None), None)
    callback.on_step_end(trainer, _event(_batch(pad_size=1), step=4), None)
    (batch,) = arrived(callback._late, service)
    callback.on_epoch_end(trainer, _event(None), None)
    callback.on_train_end(trainer, _event(None), None)
    _check(batch)
    assert (batch.meta.step, batch.meta.phase, batch.meta.final, batch.meta.train_version) == (4, "rollout", True, 3)
    assert (batch.meta.rank, batch.meta.world_size) == (0, 1)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [3, 3, 3]
    assert batch.prompt_id == ("4.0", "4.0", "4.1")
    run = created(service)
    assert (run["project"], run["name"], run["temperature"], run["top_p"]) == ("skyrl", "test_run", 0.7, 0.95)
    assert any(call.json["kind"] == "finished" for call in service.of("events"))


@pytest.mark.parametrize(
    ("missing", "words"), [("rollout_logprobs", "sampling_params.logprobs"), ("action_log_probs", "recomputes none")]
)
def test_what_is_missing_is_said(
    missing: str,
    words: str,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    point_at(service, monkeypatch)
    callback = skyrl.Callback()
    batch = _batch()
    batch[missing] = None
    for step in (1, 2):
        callback.on_step_end(_trainer(), _event(batch, step=step), None)
    assert caplog.text.count(words) == 1
    assert callback._late._collector is None


def test_nothing_that_goes_wrong_reaches_the_trainer(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, swallow: None
) -> None:
    point_at(service, monkeypatch)
    batch = _batch()
    batch["loss_mask"] = "no tensor"
    callback = skyrl.Callback()
    callback.on_step_end(_trainer(), _event(batch), None)
    collector = callback._late._collector
    assert collector is not None
    assert collector.stats.errors + collector.stats.rejected + sum(collector.stats.dropped.values()) > 0
    assert service.batches == {}
