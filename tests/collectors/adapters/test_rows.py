from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tailwatch_collectors.adapters import rows
from tailwatch_collectors.errors import BatchError


def test_a_row_is_cut_from_the_first_token_that_counts_to_the_last() -> None:
    row = rows.response(
        infer_logprobs=[0.0, -1.0, -2.0, -3.0, 0.0],
        train_logprobs=[9.0, -1.5, -2.5, -3.5, 9.0],
        mask=[0, 1, 0, 1, 0],
        token_ids=np.arange(5),
        reward=1.0,
        source=None,
    )

    assert row is not None
    assert row["infer_logprobs"].tolist() == [-1.0, -2.0, -3.0]
    assert row["train_logprobs"].tolist() == [-1.5, -2.5, -3.5]
    assert row["mask"].tolist() == [True, False, True]
    assert row["token_ids"].tolist() == [1, 2, 3]
    assert row["reward"] == 1.0
    assert "source" not in row


def test_a_row_without_a_token_that_counts_is_none() -> None:
    assert rows.response(infer_logprobs=[0.0], train_logprobs=[0.0], mask=[0]) is None
    assert rows.response(infer_logprobs=[], train_logprobs=[], mask=[]) is None


def test_unequal_lengths_are_refused_by_name() -> None:
    with pytest.raises(BatchError, match=r"train_logprobs: has shape \(2,\), the mask has \(3,\)"):
        rows.response(infer_logprobs=[0.0] * 3, train_logprobs=[0.0] * 2, mask=[1] * 3)


@pytest.mark.parametrize(
    "value",
    [
        [-1.0, None],
        np.array([-1.0, math.nan], np.float64),
        torch.tensor([-1.0, math.nan], dtype=torch.bfloat16),
        torch.tensor([-1.0, math.nan], requires_grad=True),
    ],
)
def test_floats_come_from_lists_arrays_and_tensors(value: object) -> None:
    found = rows.floats(value)

    assert found.dtype == np.float32
    assert found[0] == -1.0
    assert np.isnan(found[1])


def test_flags_come_from_any_mask() -> None:
    for mask in ([True, False], [1, 0], [1.0, 0.0], torch.tensor([7, 0]), np.array([1.0, 0.0])):
        assert rows.flags(mask).tolist() == [True, False]


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(BatchError, match="cannot be read as float32"):
        rows.floats(["a"])


@pytest.mark.parametrize(
    ("mask", "turns"), [("111", [0, 0, 0]), ("11001", [0, 0, 0, 0, 1]), ("0101", [0, 0, 0, 1]), ("", [])]
)
def test_turns_begin_where_sampled_tokens_follow_others(mask: str, turns: list[int]) -> None:
    assert rows.turns(np.array([character == "1" for character in mask], np.bool_)).tolist() == turns


def test_turns_are_given_only_where_somebody_has_several() -> None:
    def row(mask: list[int]) -> rows.Row:
        found = rows.response(infer_logprobs=[-1.0] * len(mask), train_logprobs=[-1.0] * len(mask), mask=mask)
        assert found is not None
        return found

    assert "turn" not in rows.columns([row([1, 1]), row([1])])
    assert [turn.tolist() for turn in rows.columns([row([1, 1]), row([1, 0, 1])])["turn"]] == [[0, 0], [0, 0, 1]]


def test_columns_need_every_row() -> None:
    with pytest.raises(BatchError, match="row 1, reward: is missing"):
        rows.columns([{"infer_logprobs": [], "reward": 1.0}, {"infer_logprobs": []}])


def test_no_rows_are_an_empty_batch() -> None:
    assert rows.columns([]) == {"infer_logprobs": [], "train_logprobs": []}


def test_zeros_of_a_skipped_forward_are_no_log_probs() -> None:
    zeros, numbers = np.zeros(2, np.float32), np.array([-1.0, 0.0], np.float32)

    assert rows.placeholder(zeros, numbers)
    assert not rows.placeholder(numbers, numbers)
    assert not rows.placeholder(zeros, zeros)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (0.5, 0.5),
        ([2.0], 2.0),
        (np.float32(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        (torch.tensor([1.0, 2.0]), None),
        (True, None),
        (math.nan, None),
        ("1", None),
        (None, None),
    ],
)
def test_a_number_is_found_or_none(value: object, number: float | None) -> None:
    assert rows.number(value) == number
