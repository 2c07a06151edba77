"""Pairing: any order, any thread, alignment by token ids, bounded, everything counted, nothing raised in training."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tailwatch_collectors as tailwatch
from tailwatch_collectors.batch import Batch
from tailwatch_collectors.inference import Pairing, Sampled, Sampling, openai, sglang
from tailwatch_collectors.lint import check_semantics
from tailwatch_collectors.types import BatchMeta
from tests.collectors.inference.responses import IDS, LOGPROBS, OPENAI_CHAT, SGLANG_CHAT, VLLM_CHAT

if TYPE_CHECKING:
    from tests.collectors.conftest import FakeService

TRAIN = np.array([-0.3, -1.4, -0.01], np.float32)
KEY = VLLM_CHAT["id"]


def sequence(key: str, ids: list[int] | None, *, tokens: int | None = None, **more: Any) -> Sampled:
    count = len(ids) if ids is not None else int(tokens or 0)
    fields: dict[str, Any] = {
        "request_id": key,
        "logprobs_T": np.linspace(-2, -1, count, dtype=np.float32),
        "token_ids_T": None if ids is None else np.array(ids, np.int32),
    }
    return Sampled(**(fields | more))


def rows(columns: dict[str, Any], name: str) -> list[list[Any]]:
    return [np.asarray(row).tolist() for row in columns[name]]


@pytest.mark.parametrize("train_first", [False, True])
def test_both_sides_meet_in_any_order(train_first: bool) -> None:
    pairing = Pairing()

    def train() -> None:
        pairing.scored(KEY, TRAIN, token_ids=IDS, advantage=0.5, prompt_id="p1")

    if train_first:
        train()
        assert pairing.take() == {}
    assert pairing.sampled(openai.read(VLLM_CHAT)) == [KEY]
    if not train_first:
        assert pairing.take() == {}
        train()
    columns = pairing.take()
    assert rows(columns, "infer_logprobs") == [LOGPROBS]
    assert rows(columns, "train_logprobs") == [TRAIN.tolist()]
    assert rows(columns, "token_ids") == [IDS]
    assert rows(columns, "mask") == [[True, True, True]]
    assert (columns["seq_id"], columns["advantage"], columns["prompt_id"]) == ([KEY], [0.5], ["p1"])
    assert set(columns) == {
        "infer_logprobs", "train_logprobs", "mask", "token_ids", "seq_id", "advantage", "prompt_id",
    }  # fmt: skip
    assert pairing.take() == {}
    assert pairing.held_tokens == 0
    assert (pairing.stats.sampled, pairing.stats.scored, pairing.stats.paired, pairing.stats.errors) == (1, 1, 1, 0)


def test_what_is_taken_is_a_batch(service: FakeService) -> None:
    pairing = Pairing()
    pairing.sampled(openai.read(VLLM_CHAT), key="a")
    pairing.sampled(openai.read(SGLANG_CHAT), key="b")
    pairing.scored("a", TRAIN, token_ids=IDS, mask=[1, 0, 1], reward=1.0)
    pairing.scored("b", TRAIN, token_ids=IDS, reward=0.0)
    collector = tailwatch.connect(project="p", run="r", url=service.url, world_size=1)
    collector.record(step=3, train_version=14, **pairing.take())
    assert collector.flush(60)
    collector.close()
    (batch,) = service.batches.values()
    assert batch.seq_id == ("a", "b")
    assert batch.mask_N is not None
    assert batch.mask_N.tolist() == [True, False, True, True, True, True]
    assert batch.reward_B is not None
    assert batch.reward_B.tolist() == [1.0, 0.0]
    assert batch.infer_version_N is None  # vLLM gave none


def test_versions_are_per_token_where_the_engine_says() -> None:
    pairing = Pairing()
    pairing.sampled(openai.read(SGLANG_CHAT), key="b")
    pairing.scored("b", TRAIN, token_ids=IDS)
    assert rows(pairing.take(), "infer_version") == [[12, 13, 13]]


def test_the_turns_of_an_agent(caplog: pytest.LogCaptureFixture) -> None:
    pairing = Pairing()
    pairing.sampled([sequence("t0", [5, 6, 2], version=3), sequence("t1", [5, 7, 8, 2], version=4)])
    tool = [90, 5, 6, 91]
    pairing.scored(["t0", "t1"], np.full(11, -1.0), token_ids=[5, 6, 2, *tool, 5, 7, 8, 2])
    columns = pairing.take()
    assert rows(columns, "mask") == [[True] * 3 + [False] * 4 + [True] * 4]
    assert rows(columns, "turn") == [[0] * 7 + [1] * 4]
    assert rows(columns, "infer_version") == [[3] * 3 + [-1] * 4 + [4] * 4]
    assert columns["seq_id"] == ["t0+t1"]
    assert np.isnan(columns["infer_logprobs"][0][3:7]).all()
    Batch.from_arrays(BatchMeta(step=0), **columns)
    pairing.sampled([sequence("u0", [5, 6, 2]), sequence("u1", [9, 9])])
    with caplog.at_level(logging.WARNING, "tailwatch"):
        pairing.scored(["u0", "u1"], np.full(5, -1.0), token_ids=[5, 6, 2, 9, 8])
    assert "2 tokens of request 1 are nowhere in the trained sequence from token 3 on" in caplog.text
    assert pairing.stats.misaligned == 1


def test_turns_wait_for_the_last() -> None:
    pairing = Pairing()
    pairing.scored(["t0", "t1"], np.full(4, -1.0), token_ids=[1, 2, 3, 4])
    pairing.sampled([sequence("t1", [3, 4])])
    assert pairing.take() == {}
    pairing.sampled([sequence("t0", [1, 2])])
    assert rows(pairing.take(), "mask") == [[True] * 4]


@pytest.mark.parametrize(
    ("sampled", "trained", "words"),
    [
        ([1, 2, 3, 4, 5], [1, 2, 9, 4, 5], r"token 2: sampled 3, trained 9 \(1 of 5 differ\): was the text tokenised"),
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, 6], "token 0: sampled 1, trained 2 .*: trained ids begin one token late"),
        ([1, 2, 3, 4, 5], [8, 1, 2, 3, 4], "token 0: sampled 1, trained 8 .*: trained ids begin one token early"),
        ([1, 2, 3, 4], [70, 71, 1, 2, 3, 4], "the trained ids hold the prompt"),
    ],
)
def test_the_first_mismatch_is_named(
    sampled: list[int], trained: list[int], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairing = Pairing()
    pairing.sampled([sequence("k", sampled)])
    with caplog.at_level(logging.WARNING, "tailwatch"):
        pairing.scored("k", np.full(len(trained), -1.0), token_ids=trained)
    assert pairing.take() == {}
    assert pairing.stats.misaligned == 1
    assert pairing.held_tokens == 0
    (record,) = caplog.records
    assert re.search(words, record.getMessage()), record.getMessage()


@pytest.mark.parametrize(("sampled", "trained"), [([1, 2, 3], [1, 2, 3, 99]), ([1, 2, 3], [1, 2])])
def test_another_length_at_the_end_is_trimmed(sampled: list[int], trained: list[int]) -> None:
    pairing = Pairing()
    pairing.sampled([sequence("k", sampled)])
    pairing.scored("k", np.full(len(trained), -1.0), token_ids=trained)
    columns = pairing.take()
    shared = min(len(sampled), len(trained))
    assert rows(columns, "mask") == [[True] * shared + [False] * (len(trained) - shared)]
    assert pairing.stats.trimmed == 1


def test_without_ids_only_lengths_are_compared() -> None:
    pairing = Pairing()
    keys = pairing.sampled(openai.read(OPENAI_CHAT))
    pairing.scored(keys[0], TRAIN, token_ids=IDS)
    pairing.scored(keys[1], TRAIN[:2])
    assert (pairing.stats.paired, pairing.stats.unchecked, pairing.stats.misaligned) == (1, 1, 1)
    pairing.sampled([sequence("a", None, tokens=2), sequence("b", [1, 2])])
    pairing.scored(["a", "b"], np.full(4, -1.0), token_ids=[1, 2, 1, 2])
    assert pairing.stats.misaligned == 2


def test_a_column_not_all_have_is_left_out() -> None:
    pairing = Pairing()
    pairing.sampled([sequence("a", [1], version=1), sequence("b", [2])])
    pairing.scored("a", [-1.0], token_ids=[1], reward=1.0, source="math")
    pairing.scored("b", [-1.0], source="code")
    columns = pairing.take()
    assert set(columns) == {"infer_logprobs", "train_logprobs", "mask", "seq_id", "source"}


def test_take_in_pieces() -> None:
    pairing = Pairing()
    for number in range(5):
        pairing.sampled([sequence(f"k{number}", [number])])
        pairing.scored(f"k{number}", [-1.0], token_ids=[number])
    assert pairing.take(limit=2)["seq_id"] == ["k0", "k1"]
    assert pairing.take(limit=2)["seq_id"] == ["k2", "k3"]
    assert pairing.take(limit=2)["seq_id"] == ["k4"]
    assert pairing.take(limit=2) == {}


@pytest.mark.parametrize("side", ["sampled", "scored", "ready"])
def test_memory_is_bounded_and_the_oldest_go(side: str) -> None:
    pairing = Pairing(capacity_tokens=100)
    for number in range(1_000):
        if side != "scored":
            pairing.sampled([sequence(f"k{number}", list(range(10)))])
        if side != "sampled":
            pairing.scored(f"k{number}", np.full(10, -1.0), token_ids=list(range(10)))
        assert pairing.held_tokens <= 100
    kept = 3 if side == "ready" else 10
    assert pairing.stats.dropped == 1_000 - kept
    if side == "ready":
        assert pairing.take()["seq_id"] == [f"k{number}" for number in range(997, 1_000)]
    else:
        for number in range(1_000):
            pairing.sampled([sequence(f"k{number}", list(range(10)))])
            pairing.scored(f"k{number}", np.full(10, -1.0), token_ids=list(range(10)))
        assert pairing.held_tokens <= 100
        assert len(pairing._waiting) <= 10


def test_a_sequence_larger_than_everything_is_dropped() -> None:
    pairing = Pairing(capacity_tokens=5)
    pairing.sampled([sequence("k", list(range(10)))])
    assert (pairing.held_tokens, pairing.stats.dropped) == (0, 1)


def test_the_newer_of_two_counts() -> None:
    pairing = Pairing()
    pairing.sampled([sequence("k", [1, 2, 3])])
    pairing.sampled([sequence("k", [4, 5])])
    assert pairing.held_tokens == 2
    pairing.scored("k", [-1.0, -1.0], token_ids=[4, 5])
    assert rows(pairing.take(), "token_ids") == [[4, 5]]
    assert pairing.stats.replaced == 1


def test_settings_that_all_shared_and_those_that_differed() -> None:
    pairing = Pairing()
    assert pairing.declared == {}
    pairing.sampled(sglang.read(_sglang("a"), request={"temperature": 0.7, "top_p": 0.9}))
    assert pairing.declared == {"temperature": 0.7, "top_p": 0.9, "logprobs_mode": "scaled"}
    assert [finding.code for finding in check_semantics(_batch(), pairing.declared)] == ["truncated-sampling"]
    pairing.sampled(sglang.read(_sglang("b"), request={"temperature": 1.0}))
    assert pairing.declared == {"top_p": 0.9, "logprobs_mode": "scaled"}
    assert pairing.conflicts == {"temperature"}


def _sglang(key: str) -> dict[str, Any]:
    return {"output_ids": [1], "meta_info": {"id": key, "output_token_logprobs": [[-1.0, 1, None]]}}


def _batch() -> Batch:
    return Batch.from_arrays(BatchMeta(step=0), infer_logprobs=[[-1.0]], train_logprobs=[[-1.1]])


@pytest.mark.parametrize(
    ("key", "logprobs", "more", "words"),
    [
        ("k", np.zeros((2, 2)), {}, "expected [T]"),
        ("k", [-1.0, -2.0], {"token_ids": [1]}, "token_ids of k have shape (1,)"),
        ("k", [-1.0, -2.0], {"mask": [True]}, "mask of k have shape (1,)"),
        ("k", ["x"], {}, "logprobs: cannot be read"),
        ("k", [-1.0], {"token_ids": [1.5]}, "fractional"),
        ("k", [-1.0], {"turn": [0]}, "['turn'] come from pairing itself"),
        ("", [-1.0], {}, "key is ''"),
        ([], [-1.0], {}, "key is []"),
        (["a", "a"], [-1.0], {}, "key is ['a', 'a']"),
    ],
)
@pytest.mark.usefixtures("swallow")
def test_what_cannot_be_understood_is_counted_not_raised(
    key: Any, logprobs: Any, more: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairing = Pairing()
    with caplog.at_level(logging.WARNING, "tailwatch"):
        pairing.scored(key, logprobs, **more)
    assert pairing.stats.errors == 1
    assert words in caplog.text
    assert pairing.held_tokens == 0


@pytest.mark.usefixtures("swallow")
def test_a_request_without_an_id_needs_a_key() -> None:
    pairing = Pairing()
    assert pairing.sampled([sequence("", [1])]) == []
    assert pairing.stats.errors == 1
    assert pairing.sampled([sequence("", [1]), sequence("", [2])], key="own") == ["own/0", "own/1"]
    assert pairing.sampled(None) == []  # type: ignore[arg-type]
    assert pairing.stats.errors == 2


def test_a_wrong_capacity() -> None:
    with pytest.raises(ValueError, match="capacity_tokens is 0"):
        Pairing(capacity_tokens=0)


def test_arrays_are_copied() -> None:
    pairing = Pairing()
    train = TRAIN.copy()
    pairing.scored(KEY, train, token_ids=IDS)
    train[:] = 0
    pairing.sampled(openai.read(VLLM_CHAT))
    assert rows(pairing.take(), "train_logprobs") == [TRAIN.tolist()]


def test_clear_forgets_and_counts() -> None:
    pairing = Pairing()
    pairing.sampled([sequence("a", [1]), sequence("b", [1])])
    pairing.scored("b", [-1.0], token_ids=[1])
    pairing.scored("c", [-1.0], token_ids=[1])
    pairing.clear()
    assert (pairing.stats.dropped, pairing.held_tokens, pairing.take()) == (3, 0, {})
    pairing.sampled([sequence("c", [1])])
    assert pairing.take() == {}


def test_many_threads_lose_nothing() -> None:
    pairing = Pairing()

    def sample(part: int) -> None:
        for number in range(100):
            pairing.sampled([sequence(f"{part}-{number}", [number], sampling=Sampling(temperature=1.0))])

    def score(part: int) -> None:
        for number in range(100):
            pairing.scored(f"{part}-{number}", [-1.0], token_ids=[number])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8) for work in (sample, score)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (pairing.stats.paired, pairing.stats.misaligned, pairing.held_tokens) == (800, 0, 2_400)
    assert len(pairing.take()["seq_id"]) == 800
