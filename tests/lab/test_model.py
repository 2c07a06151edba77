from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from lab import task
from lab.model import VOCABULARY, Policy, load_policy, save_policy
from lab.train import CHECKPOINT


def test_size() -> None:
    assert sum(parameter.numel() for parameter in Policy().parameters()) == 103_360


def test_committed_checkpoint_is_small_and_float32() -> None:
    assert CHECKPOINT.stat().st_size <= 500_000
    assert {tensor.dtype for tensor in load_policy(CHECKPOINT).state_dict().values()} == {torch.float32}


def test_save_and_load(tmp_path: Path) -> None:
    policy = Policy()
    save_policy(policy, path=tmp_path / "new" / "policy.pt")
    loaded = load_policy(tmp_path / "new" / "policy.pt").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in policy.state_dict().items())


def test_no_token_sees_a_later_one() -> None:
    policy = load_policy(CHECKPOINT)
    tokens = torch.tensor([task.encode("37+58+14+92:58+14=72;")])
    changed = tokens.clone()
    changed[0, -1] = task.EOS
    with torch.no_grad():
        assert torch.equal(policy(tokens)[:, :-1], policy(changed)[:, :-1])


def test_response_logprobs_and_entropy_against_the_definition() -> None:
    policy = load_policy(CHECKPOINT)
    tokens = torch.tensor([task.encode("37+58+14+92:58+14=72;")])
    with torch.no_grad():
        logprobs_BT, entropy_BT = policy.response_logprobs(tokens)
        logits = policy(tokens).double()
    assert logprobs_BT.shape == (1, 9)
    for t in range(9):
        p = functional.softmax(logits[0, task.PROMPT_LENGTH - 1 + t], -1).tolist()
        chosen = int(tokens[0, task.PROMPT_LENGTH + t])
        assert logprobs_BT[0, t].item() == pytest.approx(math.log(p[chosen]), rel=1e-4, abs=1e-6)
        assert entropy_BT[0, t].item() == pytest.approx(-sum(q * math.log(q) for q in p), rel=1e-4, abs=1e-6)
        assert 0 <= entropy_BT[0, t] <= math.log(VOCABULARY)
