from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tailwatch_collectors.adapters import prime_rl
from tailwatch_collectors.errors import ConfigurationError
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences
from tests.collectors.conftest import FakeService


def inputs(one: Made) -> Any:
    """`LossInputs` of one sample: [S], prompt and response, index i is token i."""
    S = one.length
    found = SimpleNamespace(
        trainer_logprobs=torch.full((S,), -7.0),
        inference_logprobs=torch.zeros(S),
        ref_logprobs=None,
        advantages=torch.zeros(S),
        loss_mask=torch.zeros(S, dtype=torch.bool),
        loss_weights=None,
    )
    for t in range(len(one.tokens)):
        i = len(one.prompt) + t
        found.trainer_logprobs[i] = one.train[t]
        found.inference_logprobs[i] = one.infer[t]
        found.advantages[i] = one.advantages[t]
        found.loss_mask[i] = one.mask[t]
    found.trainer_logprobs.requires_grad_()
    return found


def test_samples_of_a_step_are_the_truth() -> None:
    recorder, truth = Recorder(), sequences()
    tap = prime_rl.LossTap(recorder, first_step=5)  # type: ignore[arg-type]

    for one in truth:
        tap.see(inputs(one))
    tap.end_step()
    tap.end_step()  # a second optimiser of the same step
    tap.see(inputs(truth[0]))
    tap.end_step()

    assert [(record["step"], record["phase"], record["final"]) for record in recorder.records] == [
        (5, "update", True),
        (6, "update", True),
    ]
    assert_equal(recorder.records[0], truth, columns={"advantage": "advantages"})
    assert [turn.tolist() for turn in recorder.records[0]["turn"]] == [one.turns for one in truth]


def test_a_long_step_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prime_rl, "BUFFER_TOKENS", 10)
    recorder, truth = Recorder(), sequences()
    tap = prime_rl.LossTap(recorder)  # type: ignore[arg-type]

    for one in truth:
        tap.see(inputs(one))
    tap.end_step()

    assert [record["final"] for record in recorder.records] == [False, True]
    assert [len(record["infer_logprobs"]) for record in recorder.records] == [2, 1]


def test_a_sample_that_breaks_us_does_not_reach_the_loss(swallow: None) -> None:
    recorder = Recorder()
    tap = prime_rl.LossTap(recorder)  # type: ignore[arg-type]

    tap.see(SimpleNamespace())
    tap.see(
        SimpleNamespace(
            trainer_logprobs=torch.zeros(2), inference_logprobs=[0.0], advantages=torch.zeros(2), loss_mask=[1, 1]
        )
    )
    tap.end_step()

    assert (recorder.records, recorder.errors) == ([], 2)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The two modules of prime-rl that the tap asks for its losses."""
    loss, configs = ModuleType("prime_rl.trainer.rl.loss"), ModuleType("prime_rl.configs.trainer")
    for name in ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.rl", "prime_rl.configs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, loss.__name__, loss)
    monkeypatch.setitem(sys.modules, configs.__name__, configs)

    class DefaultLossConfig:
        def __init__(self, *, kl_tau: float = 1e-3) -> None:
            self.kl_tau = kl_tau

    def default_loss_fn(inputs: Any, loss_config: Any) -> Any:
        return (inputs.trainer_logprobs * inputs.loss_mask).sum() * loss_config.kl_tau

    configs.DefaultLossConfig = DefaultLossConfig  # type: ignore[attr-defined]
    loss.default_loss_fn = default_loss_fn  # type: ignore[attr-defined]
    monkeypatch.setattr(prime_rl, "_TAPS", {})
    yield loss
    from torch.optim import optimizer

    optimizer._global_optimizer_post_hooks.clear()


def test_the_loss_is_looked_at_and_its_gradient_is_the_same(
    framework: ModuleType, service: FakeService, until: Callable[[Callable[[], object]], None]
) -> None:
    settings: dict[str, Any] = {"project": "p", "run": "r", "url": service.url, "first_step": 3}
    settings["loss_config"] = {"kl_tau": 2.0}
    truth = sequences()
    weights = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weights], lr=0.1)

    for one in truth:
        sample = inputs(one)
        loss = prime_rl.loss_tap(sample, **settings)
        (loss * weights).sum().backward()
        assert torch.equal(sample.trainer_logprobs.grad, 2.0 * sample.loss_mask)
    optimizer.step()

    until(lambda: service.batches)
    (batch,) = service.batches.values()
    assert (batch.meta.step, batch.meta.phase, batch.meta.framework) == (3, "update", "prime-rl")
    assert batch.lengths_B.tolist() == [len(one.tokens) for one in truth]
    (tap, _), *more = prime_rl._TAPS.values()
    assert not more
    assert tap is not None
    tap._collector.close()


def test_ranks_that_share_a_sample_send_it_once(framework: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    prime_rl.loss_tap(inputs(sequences()[0]), project="p", run="r", context_parallel=2)

    ((tap, _),) = prime_rl._TAPS.values()
    assert tap is None


def test_a_loss_of_your_own_is_found_by_its_path(framework: ModuleType) -> None:
    framework.own = lambda inputs, scale: scale * 21  # type: ignore[attr-defined]

    assert prime_rl._loss("prime_rl.trainer.rl.loss:own", {"scale": 2})(None) == 42
    with pytest.raises(ConfigurationError, match=r"'prime_rl.trainer.rl.loss.gone' cannot be loaded"):
        prime_rl._loss("prime_rl.trainer.rl.loss.gone", {})
