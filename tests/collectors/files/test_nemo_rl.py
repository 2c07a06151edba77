from __future__ import annotations

from pathlib import Path

from tailwatch_collectors.files.format import Problem, named
from tests.collectors.files import fixtures

STARTS, LENGTHS = [3, 2, 4, 3], [9, 7, 8, 5]
REWARDS = [1.0, 0.0, 0.5, 0.25]


def test_every_sample_is_the_truth(tmp_path: Path) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)

    for step in (1, 2):
        found, problems = fixtures.rows("nemo-rl", root, step)
        assert problems == []
        assert len(found) == 4
        for b, row in enumerate(found):
            for t, s in enumerate(range(STARTS[b], LENGTHS[b])):
                infer = -(s + 1) / 8 - b / 64 - step / 1024
                sampled = (b, s) != (2, 5)
                assert row["token_ids"][t] == 1000 * step + 9 * b + s
                assert row["mask"][t] == sampled
                # The last sample was taken out by its mask: it keeps its own and has none after rejection.
                assert row["mask_post"][t] == (sampled and b != 3)
                if sampled:
                    assert row["infer_logprobs"][t] == infer
                    assert row["train_logprobs"][t] == infer + ((s % 3) - 1) / 4
                    assert row["advantage"][t] == 0.5 - b / 4
            assert len(row["mask"]) == LENGTHS[b] - STARTS[b]
            # With dynamic sampling (step 2) `rewards` are those of another batch.
            assert row["reward"] == REWARDS[b]
            assert row["seq_id"] == str(b)
            assert row.get("source") == (f"agent_{b % 2}" if step == 2 else None)


def test_a_skipped_forward_is_named_and_not_sent(tmp_path: Path) -> None:
    found, problems = fixtures.rows("nemo-rl", fixtures.copy("nemo_rl", tmp_path), 3)

    assert found == []
    assert [one.kind for one in problems] == ["no_logprobs"] * 4
    assert "force_on_policy_ratio" in problems[0].reason


def test_prompts_are_named_where_the_group_size_is_known(tmp_path: Path) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    format_ = named("nemo-rl", group_size=2)

    rows = [row for row in format_.read(format_.find(root)[0]) if not isinstance(row, Problem)]
    assert [row["prompt_id"] for row in rows] == ["0", "0", "1", "1"]


def test_more_rewards_than_samples_are_passed_over(tmp_path: Path) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    path = root / "train_data_step1.jsonl"
    path.write_text(path.read_text() + '{"rewards": [9.0], "token_ids": [], "generation_logprobs": [], "idx": 4}\n')

    found, problems = fixtures.rows("nemo-rl", root, 1)

    assert (len(found), problems) == (4, [])


def test_a_torn_line_and_a_corrupt_one_are_told_apart(tmp_path: Path) -> None:
    root = fixtures.copy("nemo_rl", tmp_path)
    path = root / "train_data_step1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{]\n" + lines[2] + lines[3][:40])

    found, problems = fixtures.rows("nemo-rl", root, 1)

    assert len(found) == 2
    assert [(one.kind, one.line) for one in problems] == [("corrupt", 2), ("torn", 4)]
