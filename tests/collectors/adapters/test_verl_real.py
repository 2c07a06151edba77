"""verl itself, with its plug-in loader, its PPOTrainer and its DataProto, on the CPU: `make test-adapters` installs it.

What is not real: the batch (made by hand) and, unless `TAILWATCH_TEST_TRANSFER_QUEUE` is set, TransferQueue, which
takes a Ray cluster of 16 logical CPUs and 20 seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("verl", reason="`make test-adapters` installs verl in an environment of its own")

import torch

from tailwatch_collectors.adapters import verl
from tests.collectors.adapters import test_verl as shapes
from tests.collectors.adapters.test_verl import streaming  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

VERSION = tuple(int(part) for part in version("verl").split(".")[:2])
V1 = VERSION >= (0, 9)

IMPORTS = """
import verl
import verl.trainer.ppo.ray_trainer as legacy
from verl.trainer.ppo import rollout_corr_helper
hooked = [legacy.RayPPOTrainer.fit, legacy.compute_data_metrics]
hooked.append(rollout_corr_helper.compute_rollout_correction_and_add_to_batch)
if V1:
    import verl.trainer.ppo.v1.trainer_base as v1
    hooked += [v1.PPOTrainer._compute_metrics, v1.PPOTrainer.fit]
print(*[hasattr(function, "__wrapped__") for function in hooked])
"""


@pytest.mark.parametrize("asked", [True, False])
def test_importing_verl_is_all_it_takes(asked: bool) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATCH_")}
    if asked:
        environ["TAILWATCH_URL"] = "http://127.0.0.1:9"
    if not V1:
        environ["VERL_USE_EXTERNAL_MODULES"] = "tailwatch_collectors.adapters.verl_plugin"
    command = [sys.executable, "-c", f"V1 = {V1}\n{IMPORTS}"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=True)
    hooked = done.stdout.split("\n")[-2].split()
    assert hooked == [str(asked)] * (5 if V1 else 3)


def _data_proto(proto: shapes.Proto) -> Any:
    return import_module("verl").DataProto.from_dict(tensors=proto.batch, non_tensors=proto.non_tensor_batch)


def test_the_legacy_trainer_with_its_own_rejection_sampling(
    streaming: FakeService,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    legacy = import_module("verl.trainer.ppo.ray_trainer")
    helper = import_module("verl.trainer.ppo.rollout_corr_helper")
    for owner, name in ((legacy.RayPPOTrainer, "fit"), (legacy, "compute_data_metrics")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    name = "compute_rollout_correction_and_add_to_batch"
    monkeypatch.setattr(helper, name, getattr(helper, name))
    correction = import_module("verl.trainer.config.algorithm").RolloutCorrectionConfig(
        rollout_rs="seq_mean_k1", rollout_rs_threshold="0.9_1.1"
    )
    batch = _data_proto(shapes.Proto())
    batch.batch["old_log_probs"][1] += 0.25  # this one is no further from 1 than the rollout itself
    left: list[Any] = []

    def fit(self: Any) -> None:
        data, _ = helper.compute_rollout_correction_and_add_to_batch(batch, correction)
        batch.batch["returns"] = batch.batch["advantages"]
        batch.batch["token_level_rewards"] = batch.batch["token_level_scores"]
        batch.batch["prompts"] = torch.ones(3, 3, dtype=torch.int64)
        left.append(data.batch["response_mask"].bool())
        metrics = legacy.compute_data_metrics(batch=data, use_critic=False)
        assert metrics["response_length/max"] == 4

    monkeypatch.setattr(legacy.RayPPOTrainer, "fit", fit)
    verl.hook_correction(helper)
    verl.hook_legacy(legacy)
    trainer = object.__new__(legacy.RayPPOTrainer)
    trainer.config = shapes._config(rollout_rs="seq_mean_k1")
    trainer.global_steps = 3
    trainer.fit()
    (recorded,) = shapes._batches(streaming)
    assert recorded.mask_N is not None
    assert recorded.mask_post_N is not None
    assert recorded.mask_N.tolist() == [bool(x) for mask in shapes.MASKS for x in mask]
    expected = [bool(left[0][row, t]) for row, length in enumerate(shapes.LENGTHS) for t in range(length)]
    assert recorded.mask_post_N.tolist() == expected
    assert 0 < sum(expected) < sum(sum(mask) for mask in shapes.MASKS)


@pytest.fixture
def trainer_base(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real module, hooked; taken off again."""
    if not V1:
        pytest.skip(f"verl {version('verl')} has no V1 trainer")
    module = import_module("verl.trainer.ppo.v1.trainer_base")
    for name in ("fit", "_compute_metrics"):
        monkeypatch.setattr(module.PPOTrainer, name, getattr(module.PPOTrainer, name))
    verl.hook_v1(module)
    return module


def _trainer(module: Any) -> Any:
    config = shapes._config(rollout_rs="token_k1")
    config["actor_rollout_ref"]["model"] = {"mtp": None}
    trainer: Any = object.__new__(import_module("verl.trainer.ppo.v1.trainer_sync").PPOTrainerSync)
    assert isinstance(trainer, module.PPOTrainer)
    trainer.config = import_module("omegaconf").OmegaConf.create(config)
    trainer.use_critic = False
    trainer._rollout_moe_lb_metrics_accumulator = None
    trainer._get_n_gpus_for_throughput = lambda: 1
    return trainer


def _samples() -> Any:
    stack = import_module("tensordict.tensorclass").NonTensorStack
    fields = shapes._fields()
    fields["returns"] = fields["advantages"]
    fields["prompts"] = shapes._nested([torch.ones(2, dtype=torch.int64)] * 4)
    fields["num_turns"] = torch.tensor([2, 1, 1, 2])
    for name in ("uid", "data_source"):
        fields[name] = stack(*fields[name].tolist())
    return import_module("tensordict").TensorDict(fields, batch_size=4)


TIMING = {"gen": 1.0, "step": 2.0}


def _check(service: FakeService, metrics: dict[str, Any]) -> None:
    assert metrics["training/off_policy/trajectory_staleness/max"] == 2
    (batch,) = shapes._batches(service)
    shapes._check(batch)
    assert (batch.meta.step, batch.meta.train_version, batch.seq_id) == (8, 7, tuple(shapes.KEYS))
    # verl's own staleness: (step - 1) - max_global_steps.
    assert batch.infer_version_B is not None
    assert [7 - version for version in batch.infer_version_B.tolist()] == [2, 1, 0]
    assert batch.mask_post_N is not None
    assert batch.mask_post_N.tolist() == [bool(x) for mask in shapes.LEFT for x in mask]


def test_the_real_compute_metrics(trainer_base: Any, streaming: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    samples = _samples()

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        return samples.select(*[name for name in select_fields if name in set(samples.keys())])

    monkeypatch.setattr(trainer_base, "tq", SimpleNamespace(kv_batch_get=kv_batch_get))
    batch = SimpleNamespace(keys=[*shapes.KEYS, "a_0_0_pad"], partition_id="train", tags=shapes._tags())
    metrics: dict[str, Any] = {}
    _trainer(trainer_base)._compute_metrics(batch, metrics, TIMING, global_steps=8, epoch=0)
    _check(streaming, metrics)


@pytest.mark.slow
@pytest.mark.skipif("TAILWATCH_TEST_TRANSFER_QUEUE" not in os.environ, reason="starts a Ray cluster; see the top")
def test_the_real_transfer_queue(trainer_base: Any, streaming: FakeService) -> None:  # noqa: F811
    ray, tq = import_module("ray"), import_module("transfer_queue")
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    try:
        tq.init()
        keys = [*shapes.KEYS, "a_0_0_pad"]
        batch = tq.kv_batch_put(keys=keys, partition_id="train", tags=shapes._tags(), fields=_samples())
        metrics: dict[str, Any] = {}
        _trainer(trainer_base)._compute_metrics(batch, metrics, TIMING, global_steps=8, epoch=0)
        _check(streaming, metrics)
    finally:
        ray.shutdown()
