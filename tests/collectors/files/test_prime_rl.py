from __future__ import annotations

import json
import math
import os
from pathlib import Path

from tests.collectors.files import fixtures

MASK = [0, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0]
"""Of the pack of two sequences, 6 and 7 tokens, whose last two are padding."""


def test_every_sequence_of_every_rank_is_the_truth(tmp_path: Path) -> None:
    root = fixtures.copy("prime_rl", tmp_path)

    for step in (1, 2):
        found, problems = fixtures.rows("prime-rl", root, step)
        assert problems == []
        assert len(found) == 8
        position = 0
        for rank in (0, 1):
            for micro_step in (0, 1):
                base = step * 100 + rank * 10 + micro_step
                for sequence, (start, end, name, advantage) in enumerate([(0, 6, "math", 0.5), (6, 11, "code", -0.25)]):
                    row = found[position]
                    position += 1
                    # Where micro step 1 has rl weights, token 3 has weight 0: another model's.
                    counts = [MASK[i] == 1 and not (micro_step == 1 and i == 3) for i in range(start, end)]
                    first = start + counts.index(True)
                    last = start + len(counts) - 1 - counts[::-1].index(True)
                    for t, i in enumerate(range(first, last + 1)):
                        infer = -(i + 1) / 8 - base / 1024
                        train = infer + ((i % 3) - 1) / 4
                        assert row["token_ids"][t] == 1000 * base + i
                        assert row["infer_logprobs"][t] == infer
                        assert row["advantage"][t] == advantage
                        assert row["entropy"][t] == i / 16
                        assert row["mask"][t] == bool(counts[i - start])
                        if micro_step == 1 and i == 8:
                            assert math.isnan(row["train_logprobs"][t])  # infinite in the trainer, null in the file
                            continue
                        assert row["train_logprobs"][t] == train
                        delta = math.exp(train) - math.exp(infer)
                        dropped = delta > 0.2 if advantage > 0 else delta < -0.2
                        assert row["mask_post"][t] == (row["mask"][t] and not dropped)
                    assert len(row["mask"]) == last - first + 1
                    assert row["source"] == name
                    assert row["seq_id"] == f"{rank}.{2 * micro_step + sequence}"


def test_some_token_was_dropped_by_the_loss(tmp_path: Path) -> None:
    """So that the comparison of `mask_post` above is one of something."""
    found, _ = fixtures.rows("prime-rl", fixtures.copy("prime_rl", tmp_path), 1)
    lines = [
        json.loads(line)
        for rank in (0, 1)
        for line in (fixtures.HERE / f"prime_rl/token_exports/step_1/rank_{rank}.jsonl").read_text().splitlines()
    ]

    assert sum(sum(line["is_masked"]) for line in lines) == sum(
        int((row["mask"] & ~row["mask_post"]).sum()) for row in found
    )


def test_a_step_is_whole_with_a_marker_younger_than_its_data(tmp_path: Path) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    format_, unit = fixtures.unit("prime-rl", root, 1)
    stable = unit.paths[0].parent / "STABLE"

    assert format_.state(unit) == "whole"
    os.utime(unit.paths[1], (fixtures.LONG_AGO + 2, fixtures.LONG_AGO + 2))  # a resumed run writes beside the old one
    assert format_.state(unit) == "partial"
    stable.unlink()
    assert format_.state(unit) == "partial"


def test_another_schema_version_is_named(tmp_path: Path) -> None:
    root = fixtures.copy("prime_rl", tmp_path)
    path = root / "token_exports/step_1/rank_0.jsonl"
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":2'))

    found, problems = fixtures.rows("prime-rl", root, 1)

    assert len(found) == 4
    assert [(one.kind, one.line) for one in problems] == [("unusable", line) for line in (1, 2, 3, 4)]
    assert str(problems[0]) == f"{path}:1: unusable: schema_version: is 2; this reader knows 1"


def test_the_directory_above_or_the_exports_themselves(tmp_path: Path) -> None:
    root = fixtures.copy("prime_rl", tmp_path)

    above, _ = fixtures.unit("prime-rl", root, 2)
    assert above.find(root) == above.find(root / "token_exports")
