from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tailwatch_collectors.adapters import tinker
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences

COLUMNS = {"token_ids": "tokens", "advantage": "advantages"}


class TensorData:
    """As tinker ships arrays: a flat list, its type and shape."""

    def __init__(self, data: list[float] | list[int]) -> None:
        self.data = data
        self.dtype = "float32"
        self.shape = [len(data)]


def datum(one: Made, wrapped: type = TensorData) -> Any:
    """Index t is `target_tokens[t]`: the whole sequence without its first token."""
    prompt = len(one.prompt) - 1
    return SimpleNamespace(
        loss_fn_inputs={
            "target_tokens": wrapped((one.prompt + one.tokens)[1:]),
            "logprobs": wrapped([0.0] * prompt + one.infer),
            "advantages": wrapped([0.0] * prompt + one.advantages),
            "mask": wrapped([0.0] * prompt + [float(sampled) for sampled in one.mask]),
        }
    )


def train(one: Made) -> torch.Tensor:
    return torch.tensor([-7.0] * (len(one.prompt) - 1) + one.train)


def array(values: list[float]) -> Any:
    return torch.tensor(values).numpy()


@pytest.mark.parametrize("wrapped", [TensorData, torch.tensor, array])
def test_datums_are_the_truth(wrapped: Any) -> None:
    truth = sequences()
    metadata = [{"group_idx": one.group, "traj_idx": 0} for one in truth]

    found = tinker.datums([datum(one, wrapped) for one in truth], [train(one) for one in truth], metadata=metadata)

    assert_equal(found, truth, columns=COLUMNS)
    assert found["prompt_id"] == ["0", "0", "1"]
    assert [turn.tolist() for turn in found["turn"]] == [one.turns for one in truth]


def test_an_iteration_is_recorded_under_its_own_number() -> None:
    truth, recorder = sequences(), Recorder()

    async def compute(
        training_client: Any,
        checkpoint_mgr: Any,
        i_batch: int,
        data_D: list[Any],
        training_logprobs_D: list[Any],
        do_compute_post_kl: bool,
    ) -> tuple[str, dict[str, float]]:
        return "client", {}

    module = SimpleNamespace(**{tinker.FUNCTION: compute})
    tinker.attach(module, recorder)  # type: ignore[arg-type]
    call = getattr(module, tinker.FUNCTION)
    # The loop passes the number of the checkpoint, one above the iteration's.
    result = asyncio.run(call(None, None, 8, [datum(one) for one in truth], [train(one) for one in truth], False))

    assert result == ("client", {})
    assert (recorder.records[0]["step"], recorder.records[0]["phase"]) == (7, "update")
    assert_equal(recorder.records[0], truth, columns=COLUMNS)


def test_another_number_of_log_probs_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        tinker.datums([datum(sequences()[0])], [])
