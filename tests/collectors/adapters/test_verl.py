"""verl's adapter against loops, and its hooks on modules that look like verl's. The real ones: test_verl_real.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tailwatch_collectors import BatchMeta
from tailwatch_collectors.adapters import base, verl
from tailwatch_collectors.batch import Batch

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

FLUSH_S = 60.0
LENGTHS = (4, 2, 3)
KEYS = ["a_0_0", "a_1_0", "b_0_0"]
MASKS = [[1, 1, 0, 1], [1, 1], [1, 1, 1]]
LEFT = [[1, 0, 0, 1], [0, 0], [1, 1, 1]]
"""The masks after rejection."""


def _value(name: str, row: int, t: int) -> float:
    """Something else at every place of every field."""
    offset = {"rollout_log_probs": -1.0, "old_log_probs": -1.25, "entropy": 2.0, "rm_scores": 0.5, "responses": 100}
    return offset[name] + 0.01 * row + 0.125 * t if name != "responses" else 100 + 10 * row + t


def _ragged(name: str) -> list[torch.Tensor]:
    dtype = torch.int64 if name == "responses" else torch.float32
    return [
        torch.tensor([_value(name, row, t) for t in range(length)], dtype=dtype) for row, length in enumerate(LENGTHS)
    ]


def _nested(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def _fields(**more: Any) -> dict[str, Any]:
    """What TransferQueue gives for three samples, and a copy of the first that fills up the batch."""

    def with_copy(rows: list[torch.Tensor]) -> torch.Tensor:
        return _nested([*rows, rows[0]])

    fields: dict[str, Any] = {name: with_copy(_ragged(name)) for name in ("responses", "rollout_log_probs")}
    fields |= {name: with_copy(_ragged(name)) for name in ("old_log_probs", "entropy", "rm_scores")}
    advantages = [torch.tensor([float(row)] * length) for row, length in enumerate(LENGTHS)]
    fields["advantages"] = with_copy(advantages)
    fields["response_mask"] = with_copy([torch.tensor(mask) for mask in LEFT])
    fields["loss_mask"] = with_copy([torch.tensor(mask) for mask in MASKS])
    fields["uid"] = np.array(["a", "a", "b", "a"], dtype=object)
    fields["data_source"] = np.array(["gsm8k", "gsm8k", "aime", "gsm8k"], dtype=object)
    return {**fields, **more}


def _tags() -> list[dict[str, Any]]:
    tags: list[dict[str, Any]] = [{"min_global_steps": 5, "max_global_steps": 5 + row} for row in range(3)]
    return [*tags, {"min_global_steps": 5, "max_global_steps": 5, "is_padding": True}]


def _nested_columns(**more: Any) -> dict[str, Any]:
    return verl.nested_columns(_fields(**more), keys=[*KEYS, "a_0_0_pad"], tags=_tags(), rejects=True)


def _check(batch: Batch, *, entropy: bool = True) -> None:
    """The batch against the three samples, place by place."""
    assert batch.offsets_B1.tolist() == [0, 4, 6, 9]
    assert batch.mask_N is not None
    assert batch.token_ids_N is not None
    assert batch.turn_N is not None
    assert batch.advantage_B is not None
    assert batch.reward_B is not None
    place = 0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            assert batch.infer_logprobs_N[place] == np.float32(_value("rollout_log_probs", row, t))
            assert batch.train_logprobs_N[place] == np.float32(_value("old_log_probs", row, t))
            assert batch.token_ids_N[place] == _value("responses", row, t)
            assert batch.mask_N[place] == MASKS[row][t]
            assert batch.turn_N[place] == (1 if (row, t) == (0, 3) else 0)
            if entropy:
                assert batch.entropy_N is not None
                assert batch.entropy_N[place] == np.float32(_value("entropy", row, t))
            place += 1
        assert batch.advantage_B[row] == row
        assert batch.reward_B[row] == pytest.approx(sum(_value("rm_scores", row, t) for t in range(length)))
    assert batch.prompt_id == ("a", "a", "b")
    assert batch.source == ("gsm8k", "gsm8k", "aime")


def test_nested_samples_of_the_v1_trainer() -> None:
    batch = Batch.from_arrays(BatchMeta(step=0), **_nested_columns())
    _check(batch)
    assert batch.seq_id == tuple(KEYS)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [5, 6, 7]
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [bool(x) for mask in LEFT for x in mask]


def test_without_a_loss_mask_the_response_mask_is_the_mask() -> None:
    found = _nested_columns(loss_mask=None, entropy=None, data_source=None)
    assert [mask.tolist() for mask in found["mask"]] == [[bool(x) for x in mask] for mask in LEFT]
    assert not {"mask_post", "entropy", "source"} & set(found)


def test_a_sample_without_a_version_leaves_the_lag_unknown() -> None:
    tags = _tags()
    tags[1]["max_global_steps"] = None
    found = verl.nested_columns(_fields(), keys=[*KEYS, "pad"], tags=tags)
    assert "infer_version" not in found
    assert "mask_post" not in found  # no rejection sampling


def test_advantages_that_differ_within_a_sequence_stay_per_token() -> None:
    advantages = [torch.arange(length, dtype=torch.float32) for length in (*LENGTHS, LENGTHS[0])]
    batch = Batch.from_arrays(BatchMeta(step=0), **_nested_columns(advantages=_nested(advantages)))
    assert batch.advantage_N is not None
    assert batch.advantage_N.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]


class Proto:
    """What the adapter knows of a DataProto: prompts padded on the left, responses on the right."""

    def __init__(self, **others: Any) -> None:
        width, prompt = 5, 3

        def padded(rows: Sequence[Any]) -> torch.Tensor:
            found = torch.zeros(3, width, dtype=torch.as_tensor(rows[0]).dtype)
            for row, value in enumerate(rows):
                found[row, : len(value)] = torch.as_tensor(value)
            return found

        self.batch: dict[str, Any] = {
            name: padded(_ragged(name)) for name in ("responses", "rollout_log_probs", "old_log_probs")
        }
        self.batch["token_level_scores"] = padded(_ragged("rm_scores"))
        self.batch["advantages"] = padded([[float(row)] * length for row, length in enumerate(LENGTHS)])
        self.batch["response_mask"] = padded(MASKS)
        attention = padded([[1] * length for length in LENGTHS])
        self.batch["attention_mask"] = torch.cat([torch.tensor([[0, 1, 1]] * prompt), attention], dim=1)
        self.non_tensor_batch = {
            "uid": np.array(["a", "a", "b"], dtype=object),
            "data_source": np.array(["gsm8k", "gsm8k", "aime"], dtype=object),
            **others,
        }

    def reject(self) -> None:
        self.batch["response_mask"] *= torch.tensor([[1, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


def test_a_padded_batch_of_the_legacy_trainers() -> None:
    batch = Batch.from_arrays(BatchMeta(step=0), **verl.padded_columns(Proto(), infer_version=6))
    _check(batch, entropy=False)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [6, 6, 6]
    assert batch.mask_post_N is None


def test_versions_of_the_batch_win_and_the_mask_before_rejection_counts() -> None:
    proto = Proto(max_global_steps=np.array([5, 6, 7]))
    mask = proto.batch["response_mask"].clone()
    proto.reject()
    batch = Batch.from_arrays(BatchMeta(step=0), **verl.padded_columns(proto, mask=mask, infer_version=1))
    _check(batch, entropy=False)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [5, 6, 7]
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [bool(x) for mask in LEFT for x in mask]


# --- the hooks ---


def _config(**correction: Any) -> dict[str, Any]:
    return {
        "trainer": {"project_name": "math", "experiment_name": "grpo"},
        "algorithm": {"rollout_correction": correction},
        "actor_rollout_ref": {
            "rollout": {
                "temperature": 0.9,
                "top_p": 1.0,
                "dtype": "bfloat16",
                "quantization": None,
                "logprobs_mode": "processed_logprobs",
            }
        },
    }


@pytest.fixture
def streaming(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A service that the environment names."""
    monkeypatch.setenv("TAILWATCH_URL", service.url)
    monkeypatch.setattr(base.guard, "_seen", set())
    yield service
    verl.late.finished()
    verl.late.use(None)


def _batches(service: FakeService) -> list[Batch]:
    collector = verl.late._collector
    assert collector is not None
    assert collector.flush(FLUSH_S)
    return list(service.batches.values())


class PPOTrainer:
    """The V1 trainer, as far as the hook goes."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.calls = 0

    def fit(self, agent_loop_manager: Any) -> None:
        batch = SimpleNamespace(keys=[*KEYS, "pad"], partition_id="train", tags=_tags())
        self._compute_metrics(batch, {}, {}, global_steps=8, epoch=0)

    def _compute_metrics(self, batch: Any, metrics: Any, timing_raw: Any, global_steps: int, epoch: int) -> None:
        self.calls += 1


def _v1_module(**fields: Any) -> Any:
    module: Any = ModuleType("trainer_base")
    module.PPOTrainer = type(
        "PPOTrainer", (PPOTrainer,), {"fit": PPOTrainer.fit, "_compute_metrics": PPOTrainer._compute_metrics}
    )

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        assert (keys, partition_id) == ([*KEYS, "pad"], "train")
        return {name: value for name, value in _fields(**fields).items() if name in select_fields}

    module.tq = SimpleNamespace(kv_batch_get=kv_batch_get)
    return module


def test_the_v1_trainer_is_tapped_and_the_run_ends_with_it(streaming: FakeService) -> None:
    module = _v1_module()
    verl.hook_v1(module)
    trainer = module.PPOTrainer(_config(rollout_rs="token_k1"))
    trainer.fit(None)
    assert trainer.calls == 1
    (batch,) = _batches(streaming)
    _check(batch)
    assert (batch.meta.step, batch.meta.phase, batch.meta.train_version) == (8, "rollout", 7)
    assert (batch.meta.rank, batch.meta.world_size, batch.meta.final) == (0, 1, True)
    (run,) = [call.json for call in streaming.of("runs")]
    assert (run["project"], run["name"]) == ("math", "grpo")
    told = {**run, **(run.get("config") or {})}
    assert (told["temperature"], told["precision"], told["logprobs_mode"]) == (0.9, "bfloat16", "processed")
    assert any(call.json["kind"] == "finished" for call in streaming.of("events"))


def test_in_bypass_mode_it_says_that_there_is_nothing_to_compare(
    streaming: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    module = _v1_module()
    verl.hook_v1(module)
    module.PPOTrainer(_config(bypass_mode=True)).fit(None)
    assert verl.late._collector is None
    assert "bypass_mode" in caplog.text


def test_without_rollout_log_probs_it_names_the_setting(
    streaming: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    module = _v1_module(rollout_log_probs=None)
    verl.hook_v1(module)
    module.PPOTrainer(_config()).fit(None)
    assert "calculate_log_probs" in caplog.text


def test_what_goes_wrong_in_the_hook_stays_there(streaming: FakeService, swallow: None) -> None:
    module = _v1_module(old_log_probs="no tensor")
    verl.hook_v1(module)
    trainer = module.PPOTrainer(_config())
    trainer.fit(None)
    assert trainer.calls == 1


def test_a_wrong_setting_keeps_the_hook_away(
    streaming: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAILWATCH_URL", "not a url")
    module = _v1_module()
    verl.hook_v1(module)
    for _ in range(2):
        module.PPOTrainer(_config()).fit(None)
    assert caplog.text.count("not connected") == 1


class LegacyTrainer:
    """RayPPOTrainer, as far as the hooks go."""

    module: Any
    helper: Any

    def __init__(self, config: Any, batch: Any) -> None:
        self.config, self.batch, self.global_steps = config, batch, 3

    def fit(self) -> None:
        self.helper.compute_rollout_correction_and_add_to_batch(self.batch, None)
        self.module.compute_data_metrics(batch=self.batch, use_critic=False)


def _legacy_modules() -> Any:
    module: Any = ModuleType("ray_trainer")
    helper: Any = ModuleType("rollout_corr_helper")
    module.RayPPOTrainer = type(
        "RayPPOTrainer", (LegacyTrainer,), {"fit": LegacyTrainer.fit, "module": module, "helper": helper}
    )

    def compute_data_metrics(batch: Any, use_critic: bool) -> dict[str, float]:
        return {"reward": 1.0}

    def correct(batch: Any, rollout_corr_config: Any) -> tuple[Any, dict[str, float]]:
        batch.reject()
        return batch, {}

    module.compute_data_metrics = compute_data_metrics
    helper.compute_rollout_correction_and_add_to_batch = correct
    verl.hook_correction(helper)
    verl.hook_legacy(module)
    return module


def test_the_legacy_trainer_is_tapped_with_the_mask_from_before_the_rejection(streaming: FakeService) -> None:
    module = _legacy_modules()
    trainer = module.RayPPOTrainer(_config(rollout_rs="token_k1"), Proto())
    trainer.fit()
    (batch,) = _batches(streaming)
    _check(batch, entropy=False)
    assert (batch.meta.step, batch.meta.train_version) == (3, 2)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [2, 2, 2]
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [bool(x) for mask in LEFT for x in mask]


def test_trainers_with_rollout_and_training_apart(streaming: FakeService) -> None:
    class SeparateRayPPOTrainer:
        config, global_steps, current_param_version = _config(), 9, 4

        def _fit_compute_advantage(self, batch: Any) -> Any:
            return batch

    module: Any = ModuleType("separation")
    module.SeparateRayPPOTrainer = SeparateRayPPOTrainer
    verl.hook_separation(module)
    proto = Proto(max_global_steps=np.array([3, 4, 4]))
    assert SeparateRayPPOTrainer()._fit_compute_advantage(proto) is proto
    (batch,) = _batches(streaming)
    assert (batch.meta.step, batch.meta.train_version) == (9, 4)
    assert batch.infer_version_B is not None
    assert batch.infer_version_B.tolist() == [3, 4, 4]


def test_the_plug_in_waits_for_the_trainers_and_does_nothing_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(verl, "on_import", lambda name, hook: asked.append(name))
    monkeypatch.setattr(verl, "_installed", False)
    for url, expected in (("", 0), ("http://127.0.0.1:1", 4), ("http://127.0.0.1:1", 4)):
        monkeypatch.setenv("TAILWATCH_URL", url)
        monkeypatch.delitem(sys.modules, "tailwatch_collectors.adapters.verl_plugin", raising=False)
        import_module("tailwatch_collectors.adapters.verl_plugin")
        assert len(asked) == expected
