from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from tailwatch_collectors.files import skyrl
from tests.collectors.files import fixtures

LENGTHS = [5, 3, 4]
R = 5


def bf16(value: float) -> float:
    import torch

    return float(torch.tensor(value).bfloat16())


@pytest.mark.parametrize("step", [1, 2])
def test_every_row_is_the_truth(tmp_path: Path, step: int) -> None:
    found, problems = fixtures.rows("skyrl", fixtures.copy("skyrl", tmp_path), step)

    assert problems == []
    assert len(found) == 3
    for b, row in enumerate(found):
        assert len(row["mask"]) == LENGTHS[b]  # right-aligned: the padding on the left is gone
        prompt = min(2 + b, 8 - LENGTHS[b])
        for k in range(LENGTHS[b]):
            sampled = (b, R - LENGTHS[b] + k) != (2, 2)
            infer = -(k + 1) / 8 - b / 64 - step / 1024
            train = infer + ((k % 3) - 1) / 4
            assert row["mask"][k] == sampled
            assert row["token_ids"][k] == 1000 * step + 100 * b + prompt + k
            assert row["advantage"][k] == 0.5 - b / 4
            if sampled:
                assert row["infer_logprobs"][k] == infer
                assert row["train_logprobs"][k] == (train if step == 1 else bf16(train))
        assert row["prompt_id"] == str([0, 0, 1][b])


def test_a_skipped_forward_is_named(tmp_path: Path) -> None:
    found, (problem,) = fixtures.rows("skyrl", fixtures.copy("skyrl", tmp_path), 3)

    assert (found, problem.kind, problem.reason) == ([], "no_logprobs", "the batch has no action_log_probs")


def test_bfloat16_without_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    found, (problem,) = fixtures.rows("skyrl", fixtures.copy("skyrl", tmp_path), 2)

    assert (found, problem.kind) == ([], "unusable")
    assert problem.reason == "holds bfloat16 tensors, which are read with torch"


def test_padding_rows_are_left_out() -> None:
    data = (fixtures.HERE / "skyrl/global_step_1_training_input.pkl").read_bytes()
    tensors, metadata = skyrl.load(data)

    assert len(skyrl.sequences(tensors, {**metadata, "pad_size": 1})) == 2


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1 / 0",))


@pytest.mark.parametrize("content", [Evil(), {"a": 1}, [Evil()]])
def test_a_pickle_of_something_else_is_refused_and_runs_nothing(tmp_path: Path, content: object) -> None:
    (tmp_path / "global_step_1_training_input.pkl").write_bytes(pickle.dumps(content))

    found, (problem,) = fixtures.rows("skyrl", tmp_path, 1)

    assert (found, problem.kind) == ([], "corrupt")
    assert "UnpicklingError" in problem.reason


def test_half_a_file_is_not_whole(tmp_path: Path) -> None:
    root = fixtures.copy("skyrl", tmp_path)
    format_, unit = fixtures.unit("skyrl", root, 1)
    content = unit.paths[0].read_bytes()

    assert format_.state(unit) == "looks_whole"
    unit.paths[0].write_bytes(content[:-1])
    assert format_.state(unit) == "partial"
    assert [one.kind for one in fixtures.rows("skyrl", root, 1)[1]] == ["corrupt"]
