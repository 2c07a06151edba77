from __future__ import annotations

from typing import Any

import pytest
import torch

from tailwatch_collectors.adapters import nemo_rl
from tests.collectors.adapters.handmade import Made, Recorder, assert_equal, sequences

S = 10


def batch(made: list[Made]) -> dict[str, Any]:
    """[B, S] right-padded, prompt and response; index i is token i."""
    B = len(made)
    found: dict[str, Any] = {
        "input_ids": torch.zeros(B, S, dtype=torch.long),
        "token_mask": torch.zeros(B, S),
        "sample_mask": torch.ones(B),
        "generation_logprobs": torch.zeros(B, S),
        "prev_logprobs": torch.zeros(B, S),
        "advantages": torch.zeros(B, S),
        "rewards": torch.tensor([one.reward for one in made]),
        "input_lengths": torch.tensor([one.length for one in made]),
    }
    for b, one in enumerate(made):
        for p, token in enumerate(one.prompt):
            found["input_ids"][b, p] = token
            found["prev_logprobs"][b, p] = -7.0  # the forward covers the prompt too
        for t, token in enumerate(one.tokens):
            i = len(one.prompt) + t
            found["input_ids"][b, i] = token
            found["token_mask"][b, i] = float(one.mask[t])
            found["generation_logprobs"][b, i] = one.infer[t]
            found["prev_logprobs"][b, i] = one.train[t]
            found["advantages"][b, i] = one.advantages[t]
    return found


def test_the_batch_of_a_step_is_the_truth() -> None:
    truth = sequences()

    found = nemo_rl.train_data(batch(truth), group_size=2)

    assert_equal(found, truth, columns={"token_ids": "tokens", "advantage": "advantages", "reward": "reward"})
    assert found["prompt_id"] == ["0", "0", "1"]
    assert found["seq_id"] == ["0", "1", "2"]
    assert [turn.tolist() for turn in found["turn"]] == [one.turns for one in truth]
    assert [post.tolist() for post in found["mask_post"]] == [one.mask for one in truth]


def test_a_sample_taken_out_keeps_its_mask_and_loses_the_mask_after_rejection() -> None:
    truth = sequences()
    data = batch(truth)
    data["sample_mask"][1] = 0.0

    found = nemo_rl.train_data(data)

    assert found["mask"][1].tolist() == truth[1].mask
    assert not found["mask_post"][1].any()
    assert found["mask_post"][2].all()


def test_with_dynamic_sampling_the_filtered_rewards_belong_to_the_samples() -> None:
    data = batch(sequences()) | {"rewards": [9.0] * 8, "filtered_rewards": [0.1, 0.2, 0.3]}

    assert nemo_rl.train_data(data)["reward"] == [0.1, 0.2, 0.3]


def test_zeros_of_a_skipped_forward_are_left_out() -> None:
    data = batch(sequences())
    data["prev_logprobs"] = torch.zeros_like(data["prev_logprobs"])

    assert nemo_rl.train_data(data)["infer_logprobs"] == []


def test_tokens_beyond_the_length_do_not_count() -> None:
    truth = sequences()
    data = batch(truth)
    data["token_mask"][:, -1] = 1.0

    assert_equal(nemo_rl.train_data(data), truth, columns={})


def test_the_logger_is_looked_at_and_other_files_are_not() -> None:
    class Logger:
        def __init__(self) -> None:
            self.written: list[str] = []

        def log_batched_dict_as_jsonl(self, to_log: dict[str, Any], filename: str) -> None:
            self.written.append(filename)

    logger, recorder, truth = Logger(), Recorder(), sequences()
    undo = nemo_rl.attach(logger, recorder, group_size=2)  # type: ignore[arg-type]
    logger.log_batched_dict_as_jsonl(batch(truth), "train_data_step7.jsonl")
    logger.log_batched_dict_as_jsonl({"content": []}, "val_data_step7.jsonl")
    undo()
    logger.log_batched_dict_as_jsonl(batch(truth), "train_data_step8.jsonl")

    assert logger.written == ["train_data_step7.jsonl", "val_data_step7.jsonl", "train_data_step8.jsonl"]
    assert [record["step"] for record in recorder.records] == [7]
    assert_equal(recorder.records[0], truth, columns={"reward": "reward"})


def test_a_batch_without_log_probs_reaches_nobody(swallow: None) -> None:
    class Logger:
        def log_batched_dict_as_jsonl(self, to_log: dict[str, Any], filename: str) -> str:
            return filename

    logger, recorder = Logger(), Recorder()
    nemo_rl.attach(logger, recorder)  # type: ignore[arg-type]

    assert logger.log_batched_dict_as_jsonl({"rewards": [1.0]}, "train_data_step1.jsonl") == "train_data_step1.jsonl"
    assert (recorder.records, recorder.errors) == ([], 1)


def test_a_missing_mask_is_named() -> None:
    data = batch(sequences())
    del data["token_mask"]

    with pytest.raises(KeyError, match="token_loss_mask, token_mask"):
        nemo_rl.train_data(data)
