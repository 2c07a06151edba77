from __future__ import annotations

from pathlib import Path

import pytest

from tailwatch_collectors.files import verl
from tests.collectors.files import fixtures

LENGTHS = [4, 2, 3]


def test_lines_that_carry_log_probs_are_the_truth(tmp_path: Path) -> None:
    found, problems = fixtures.rows("verl", fixtures.copy("verl", tmp_path), 3)

    assert problems == []
    for i, row in enumerate(found):
        assert len(row["mask"]) == LENGTHS[i]
        for t in range(LENGTHS[i]):
            sampled = (i, t) != (0, 1)
            assert row["mask"][t] == sampled
            assert row["token_ids"][t] == 3000 + 100 * i + t
            assert row["advantage"][t] == 0.5 - i / 4
            if sampled:
                assert row["infer_logprobs"][t] == -(t + 1) / 8 - i / 64 - 3 / 1024
                assert row["train_logprobs"][t] == -(t + 1) / 8 - i / 64 - 3 / 1024 + ((t % 3) - 1) / 4
        assert row["reward"] == [1.0, 0.0, 0.5][i]
        assert row["infer_version"] == 2
        assert row["prompt_id"] == ["p0", "p0", "p1"][i]


def test_a_dump_without_log_probs_is_named_and_costs_nothing(tmp_path: Path) -> None:
    found, problems = fixtures.rows("verl", fixtures.copy("verl", tmp_path), 4)

    assert found == []
    assert {(one.kind, one.reason, one.loses) for one in problems} == {
        ("no_logprobs", "has no rollout_log_probs", False)
    }


@pytest.mark.parametrize(
    ("uid", "prompt"),
    [("7f3a_1_0", "7f3a"), ("a_b_0_2", "a_b"), ("plain", "plain"), ("a_b", "a_b"), (None, None), (3, None)],
)
def test_the_prompt_of_a_key(uid: object, prompt: str | None) -> None:
    row = verl.sequence({"rollout_log_probs": [-1.0], "old_log_probs": [-1.0], "uid": uid}, index=0)

    assert row is not None
    assert row.get("prompt_id") == prompt
