from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lab.model import load_policy
from lab.train import CHECKPOINT
from lab.trainer import Settings, StepReport, Trainer
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.wire import content_digest

SMALL = Settings(steps=2, prompts=4, group=4, sync_every=2, eval_every=2)


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.values: list[tuple[int, dict[str, float]]] = []
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    def batch(self, batch: Batch) -> None:
        self.batches.append(batch)

    def scalars(self, step: int, *, values: Mapping[str, float]) -> None:
        self.values.append((step, dict(values)))

    def event(self, kind: str, *, step: int, payload: Mapping[str, Any]) -> None:
        self.events.append((kind, step, dict(payload)))


def _run(settings: Settings) -> tuple[list[StepReport], Kept]:
    kept = Kept()
    trainer = Trainer(settings, policy=load_policy(CHECKPOINT), sinks=[kept])
    return list(trainer.run()), kept


def test_two_runs_give_the_same_bits() -> None:
    (first, kept), (again, kept_again) = _run(SMALL), _run(SMALL)
    assert first == again
    assert [*map(content_digest, kept.batches)] == [*map(content_digest, kept_again.batches)]


def test_another_seed_gives_another_run() -> None:
    assert _run(SMALL)[0] != _run(replace(SMALL, seed=1))[0]


def test_arms_differ_after_the_first_update() -> None:
    grpo, bypass = (_run(replace(SMALL, arm=arm))[1].batches for arm in ("grpo", "bypass"))
    assert content_digest(grpo[0]) == content_digest(bypass[0])
    assert content_digest(grpo[1]) != content_digest(bypass[1])


def test_what_the_sinks_get() -> None:
    reports, kept = _run(replace(SMALL, steps=3))
    assert kept.events == [
        ("weight_sync", 0, {"version": 0, "engine": "fp8"}),
        ("weight_sync", 2, {"version": 4, "engine": "fp8"}),
    ]
    assert [report.lag for report in reports] == [0, 2, 0]
    assert [b.meta.train_version for b in kept.batches] == [0, 2, 4]
    assert kept.values == [(report.step, report.scalars) for report in reports]
    assert ["eval_accuracy" in values for _, values in kept.values] == [True, False, True]
    for batch in kept.batches:
        assert batch.check() == []
        assert batch.sequences == 16
        assert batch.token_ids_N is not None
        assert batch.reward_B is not None
        assert batch.advantage_B is not None
        assert batch.seq_id is not None
        assert batch.prompt_id is not None
        assert len(set(batch.seq_id)) == 16
        assert [len(set(batch.prompt_id[row : row + 4])) for row in range(0, 16, 4)] == [1] * 4
        ends = batch.token_ids_N[batch.offsets_B1[1:] - 1]
        assert set(ends[batch.reward_B == 1].tolist()) <= {14}  # every rewarded response ends with `$`
        assert np.abs(batch.advantage_B.reshape(4, 4).sum(1)).max() < 1e-4
        assert (batch.infer_logprobs_N <= 0).all()


def test_staleness_shows_in_the_log_ratios() -> None:
    settings = replace(SMALL, engine="fp32", steps=2)
    fresh, stale = (report.mismatch.abs_mean for report in _run(settings)[0])
    assert fresh < 1e-5
    assert stale > 100 * fresh


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"sync_every": -1}, "sync_every is -1"),
        ({"prompts": 5, "minibatches": 2}, "prompts is 5, not a multiple"),
    ],
)
def test_settings_that_make_no_run_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changed)  # type: ignore[arg-type]


def test_settings_describe_the_run_for_the_service() -> None:
    described = Settings(engine="int4", sync_every=8, minibatches=2).described()
    assert described["precision"] == "int4"
    assert described["staleness_bound"] == 14
    assert described["world_size"] == 1
