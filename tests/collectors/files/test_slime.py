from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tailwatch_collectors.errors import ConfigurationError
from tailwatch_collectors.files import slime
from tailwatch_collectors.files.format import named
from tests.collectors.files import fixtures


def test_every_sample_is_the_truth(tmp_path: Path) -> None:
    root = fixtures.copy("slime", tmp_path)

    for rollout in (0, 1):
        found, problems = fixtures.rows("slime", root, rollout)
        assert problems == []
        assert [row["seq_id"] for row in found] == ["0", "1", "2", "3"]
        for index, row in enumerate(found):
            # Even samples: 7 tokens, of which 4 response, the second of them a tool's; odd ones: 5, of which 3.
            total, response = (7, 4) if index % 2 == 0 else (5, 3)
            assert len(row["mask"]) == response
            for t in range(response):
                sampled = not (response == 4 and t == 1)
                infer = -(t + 1) / 8 - index / 64 - rollout / 1024
                assert row["mask"][t] == sampled
                assert row["token_ids"][t] == 1000 * rollout + 100 * index + total - response + t
                assert row["advantage"][t] == 0.25 * index
                if sampled:
                    assert row["infer_logprobs"][t] == infer
                    assert row["train_logprobs"][t] == infer + ((t % 3) - 1) / 4
            assert row["reward"] == (0.5 if index % 2 == 0 else 1.0 - index // 2)


def test_the_oldest_version_counts() -> None:
    sample = {"rollout_log_probs": [-1.0], "log_probs": [-1.0], "weight_versions": ["4", "3"]}

    row = slime.sequence(sample, index=0)
    assert row is not None
    assert row["infer_version"] == 3


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        ({"format_version": 1, "samples": []}, "unusable", "format_version is 1; this reader knows 2"),
        ({"format_version": 2, "samples": [{"log_probs": torch.zeros(1)}]}, "no_logprobs", "no rollout_log_probs"),
        (
            {"format_version": 2, "samples": [{"rollout_log_probs": [0.0], "log_probs": [0.0, 1.0]}]},
            "unusable",
            "train_logprobs: has shape (2,)",
        ),
        ([1], "unusable", "format_version is None"),
    ],
)
def test_what_is_something_else_is_named(tmp_path: Path, content: Any, kind: str, reason: str) -> None:
    torch.save(content, tmp_path / "0.pt")

    found, (problem,) = fixtures.rows("slime", tmp_path, 0)

    assert (found, problem.kind) == ([], kind)
    assert reason in problem.reason


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"format_version": 2, "samples": [Path("x")]}, tmp_path / "0.pt")

    found, (problem,) = fixtures.rows("slime", tmp_path, 0)

    assert (found, problem.kind) == ([], "corrupt")


def test_half_a_file_is_not_whole(tmp_path: Path) -> None:
    root = fixtures.copy("slime", tmp_path)
    format_, unit = fixtures.unit("slime", root, 0)
    content = unit.paths[0].read_bytes()

    assert format_.state(unit) == "whole"
    unit.paths[0].write_bytes(content[: len(content) // 2])
    assert format_.state(unit) == "partial"
    assert [one.kind for one in fixtures.rows("slime", root, 0)[1]] == ["corrupt"]


def test_without_torch_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match="read with torch, which is not installed"):
        named("slime")
