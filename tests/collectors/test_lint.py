"""Semantics lint: every wrong combination is named, once, with its place; healthy batches are not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.lint import SemanticsFinding, check_semantics
from tailwatch_collectors.lint_arrays import MAX_TOKENS
from tailwatch_collectors.types import BatchMeta

Array = NDArray[Any]

B, T = 16, 100


def policy(*, seed: int = 0, noise: float = 0.02, shape: tuple[int, int] = (B, T)) -> tuple[Array, Array]:
    """Log-probs of tokens of mixed certainty under two engines: [B, T] each."""
    random = np.random.default_rng(seed)
    infer = np.log(np.clip(random.beta(0.8, 0.4, shape), 1e-6, 1 - 1e-6))
    logit = infer - np.log(-np.expm1(infer)) + noise * random.standard_normal(shape)
    train = -np.log1p(np.exp(-logit))
    return infer.astype(np.float32), train.astype(np.float32)


def make(infer: Any, train: Any, **columns: Any) -> Batch:
    lengths = [len(row) for row in infer] if not isinstance(infer, list) else None
    return Batch.from_arrays(BatchMeta(step=0), infer_logprobs=infer, train_logprobs=train, lengths=lengths, **columns)


def found(batch: Batch, **declared: Any) -> dict[str, str]:
    findings = check_semantics(batch, declared)
    assert all(isinstance(finding, SemanticsFinding) for finding in findings)
    codes = [finding.code for finding in findings]
    assert len(set(codes)) == len(codes), codes
    return {finding.code: finding.message for finding in findings}


# --- nothing to say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [1e-6, 0.02, 0.5])
def test_healthy_batches_are_silent(seed: int, noise: float) -> None:
    infer, train = policy(seed=seed, noise=noise)
    mask = np.random.default_rng(seed).random((B, T)) > 0.1
    assert found(make(infer, train, mask=mask), temperature=1.0, top_p=1.0, top_k=-1, logprobs_mode="raw") == {}
    assert found(make(infer, train), temperature=0.7, top_p=1, top_k=0, min_p=0, logprobs_mode="processed") == {}
    assert found(make(infer, train)) == {}


def test_a_masked_tool_turn_with_fillers_is_silent() -> None:
    infer, train = policy()
    mask = np.ones((B, T), np.bool_)
    mask[:, 20:40] = False
    infer[:, 20:30], infer[:, 30:40] = 0.0, np.nan
    assert found(make(infer, train, mask=mask)) == {}


def test_a_rejection_told_by_mask_post_is_silent() -> None:
    infer, train = policy(noise=0.3)
    mask = np.ones((B, T), np.bool_)
    assert found(make(infer, train, mask=mask, mask_post=np.abs(train - infer) < 0.5)) == {}


@pytest.mark.parametrize("tokens", [0, 1, 2, 49])
def test_small_batches_show_no_pattern(tokens: int) -> None:
    infer, train = policy(shape=(1, 64))
    assert found(make([infer[0, :tokens]], [infer[0, :tokens]])) == {}
    assert found(make([], [])) == {}
    assert train.shape == (1, 64)


def test_near_certain_tokens_alone_are_no_copy() -> None:
    zeros = np.zeros((B, T), np.float32)
    assert found(make(zeros, zeros)) == {}


# --- what was declared --------------------------------------------------------------------------------------------

INFER, TRAIN = policy()
SOUND = make(INFER, TRAIN)


@pytest.mark.parametrize(
    ("declared", "codes"),
    [
        ({"temperature": 0.7, "logprobs_mode": "raw"}, ["temperature-mismatch"]),
        ({"temperature": 0.7, "logprobs_mode": "raw_logprobs"}, ["temperature-mismatch"]),
        ({"temperature": 0.7, "logprobs_mode": "raw", "train_temperature": 1}, ["temperature-ignored"]),
        ({"temperature": 0.7, "logprobs_mode": "processed", "train_temperature": 1}, ["temperature-mismatch"]),
        ({"temperature": 0.7, "logprobs_mode": "processed", "train_temperature": 0.7}, []),
        ({"temperature": 1, "logprobs_mode": "raw", "train_temperature": 0.7}, ["temperature-mismatch"]),
        ({"temperature": 0.7}, ["logprobs-mode-undeclared"]),
        ({"temperature": 0, "logprobs_mode": "raw"}, ["greedy"]),
        ({"top_p": 0.95, "logprobs_mode": "processed_logprobs"}, ["truncated-support"]),
        ({"top_k": 50, "logprobs_mode": "processed"}, ["truncated-support"]),
        ({"min_p": 0.05, "logprobs_mode": "processed"}, ["truncated-support"]),
        ({"top_p": 0.95, "logprobs_mode": "raw"}, ["truncated-sampling"]),
        ({"top_p": 0.95, "logprobs_mode": "scaled"}, ["truncated-sampling"]),
        ({"temperature": 0.7, "logprobs_mode": "scaled"}, []),
        ({"temperature": 0.7, "logprobs_mode": "scaled", "train_temperature": 1}, ["temperature-mismatch"]),
        ({"top_p": 0.95}, ["logprobs-mode-undeclared"]),
        ({"logprobs_mode": "raw_logits"}, ["declared-unreadable"]),
        ({"logprobs_mode": 7}, ["declared-unreadable"]),
        ({"temperature": "hot"}, ["declared-unreadable"]),
        ({"top_p": math.nan}, ["declared-unreadable"]),
        ({"temperature": True}, ["declared-unreadable"]),
        ({"temperature": "1.0", "top_p": "1"}, []),
        ({"temperature": None, "top_p": None, "anything": object()}, []),
    ],
)
def test_declared(declared: dict[str, Any], codes: list[str]) -> None:
    assert [finding.code for finding in check_semantics(SOUND, declared)] == codes


def test_declared_values_are_in_the_message() -> None:
    assert "0.7" in found(SOUND, temperature=0.7, logprobs_mode="raw")["temperature-mismatch"]
    message = found(SOUND, top_p=0.95, top_k=20, logprobs_mode="processed")["truncated-support"]
    assert "top_p 0.95 and top_k 20" in message
    assert "hot" in found(SOUND, temperature="hot")["declared-unreadable"]


# --- alignment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_a_shift_of_one_side(shift: int) -> None:
    infer, train = policy()
    rolled = np.roll(train, shift, axis=1)
    message = found(make(infer, rolled))["misaligned"]
    assert f"train_logprobs[t{shift:+d}]" in message
    assert ("train_logprobs are late" if shift > 0 else "infer_logprobs are late") in message


def test_a_shift_names_the_layout_of_the_framework() -> None:
    infer, train = policy()
    batch = make(infer, np.roll(train, 1, axis=1))
    assert "index i belongs to token i + 1" in found(batch, framework="OpenRLHF 0.11.2")["misaligned"]
    assert "index 0 is empty" in found(batch, framework="prime-rl")["misaligned"]


def test_rows_of_another_order() -> None:
    infer, train = policy()
    assert list(found(make(infer, train[::-1]))) == ["unpaired"]
    assert "padding='left'" in found(make(infer, train[::-1]), framework="skyrl 0.3")["unpaired"]


# --- fillers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.0, "filler-zero"),
        (1.0, "filler-one"),
        (np.nan, "filler-nan"),
        (np.inf, "filler-nan"),
        (-9999.0, "filler-floor"),
    ],
)
def test_fillers_in_one_side(side: int, value: float, code: str) -> None:
    both = policy()
    other = both[1 - side]
    other[3, 10:20] = -2.0
    both[side][3, 10:20] = value
    message = found(make(*both))[code]
    assert message.startswith(("infer_logprobs", "train_logprobs")[side])
    assert "10 of 1600" in message
    assert "sequence 3, token 10" in message
    assert "no token is masked out" in message
    keeping = np.ones((B, T), np.bool_)
    keeping[0, 0] = False
    assert "a mask was sent" in found(make(*both, mask=keeping))[code]
    keeping[3, 10:20] = False
    assert found(make(*both, mask=keeping)) == {}


def test_the_same_filler_in_both_sides_is_two_findings() -> None:
    infer, train = policy()
    infer[0, 0] = train[1, 1] = np.nan
    codes = [finding.code for finding in check_semantics(make(infer, train), {})]
    assert codes == ["filler-nan", "filler-nan"]


def test_a_saturated_log_prob_is_no_filler() -> None:
    infer, train = policy()
    infer[0, :5], train[0, :5] = 0.0, -0.05
    assert found(make(infer, train)) == {}


# --- masks --------------------------------------------------------------------------------------------------------


def test_an_empty_mask() -> None:
    infer, train = policy()
    assert list(found(make(infer, train, mask=np.zeros((B, T), np.bool_)))) == ["mask-empty"]


def test_mask_post_beyond_the_mask() -> None:
    infer, train = policy()
    mask, post = np.ones((B, T), np.bool_), np.ones((B, T), np.bool_)
    mask[2, 5:8] = False
    message = found(make(infer, train, mask=mask, mask_post=post))["mask-post-outside"]
    assert "3 tokens" in message
    assert "sequence 2, token 5" in message


def test_a_mask_that_drops_outliers_only() -> None:
    infer, train = policy(noise=0.3)
    mask = np.abs(train - infer) < 0.5
    message = found(make(infer, train, mask=mask), framework="verl 0.9.1")["mask-after-rejection"]
    assert f"{(~mask).sum()} scored tokens" in message
    assert "loss_mask" in message
    assert "mask-after-rejection" in found(make(infer, train, mask=mask, mask_post=mask))


def test_a_mask_that_drops_outlying_sequences_only() -> None:
    infer, train = policy(noise=0.1, shape=(64, T))
    means = (train - infer).mean(1)
    dropped = np.isin(means, np.sort(means)[:4])
    mask = np.repeat(~dropped[:, None], T, axis=1)
    assert "4 scored sequences" in found(make(infer, train, mask=mask))["mask-after-rejection"]
    anyhow = np.repeat(np.arange(64)[:, None] >= 4, T, axis=1)
    assert found(make(infer, train, mask=anyhow)) == {}


def test_mask_post_that_equals_a_mask_with_scored_holes() -> None:
    infer, train = policy()
    mask = np.random.default_rng(1).random((B, T)) > 0.1
    assert list(found(make(infer, train, mask=mask, mask_post=mask))) == ["mask-post-same"]


# --- values -------------------------------------------------------------------------------------------------------


def test_one_side_copied() -> None:
    infer, _ = policy()
    message = found(make(infer, infer.copy()))["identical"]
    assert "1600 tokens" in message


@pytest.mark.parametrize("side", [0, 1])
def test_probabilities_instead_of_log_probs(side: int) -> None:
    both = list(policy())
    both[side] = np.exp(both[side])
    both[side][0, 0] = 1.0
    assert found(make(*both))["probabilities"].startswith(("infer_logprobs", "train_logprobs")[side])
    assert list(found(make(*both))) == ["probabilities"]


def test_negative_log_likelihoods() -> None:
    infer, train = policy()
    assert list(found(make(-infer, train))) == ["negated"]


def test_positive_values() -> None:
    infer, train = policy()
    train[4, 7] = 3.5
    message = found(make(infer, train))["positive"]
    assert "train_logprobs: 1 of 1600" in message
    assert "3.5, first at sequence 4, token 7" in message


def test_rounding_just_above_zero_is_no_finding() -> None:
    infer, train = policy()
    train[0, 0] = 5e-4
    assert found(make(infer, train)) == {}


@pytest.mark.parametrize(("base", "factor"), [("base 2", math.log(2)), ("base 10", math.log(10))])
@pytest.mark.parametrize("side", [0, 1])
def test_another_base(base: str, factor: float, side: int) -> None:
    both = list(policy())
    both[side] = both[side] / np.float32(factor)
    message = found(make(*both))["log-base"]
    assert message.startswith(("infer_logprobs", "train_logprobs")[side])
    assert base in message


@pytest.mark.parametrize("temperature", [0.5, 0.6931, 1.4427, 2.0])
def test_a_temperature_is_no_base(temperature: float) -> None:
    logits = 3 * np.random.default_rng(0).standard_normal((B * T, 50))
    taken = np.random.default_rng(1).integers(0, 50, B * T)

    def logprobs(scaled: Array) -> Array:
        shifted = scaled - scaled.max(1, keepdims=True)
        chosen = shifted[np.arange(B * T), taken] - np.log(np.exp(shifted).sum(1))
        return np.asarray(chosen.reshape(B, T), np.float32)

    assert "log-base" not in found(make(logprobs(logits), logprobs(logits / temperature)))


# --- bounds -------------------------------------------------------------------------------------------------------


def test_only_the_head_of_a_large_batch_is_looked_at() -> None:
    infer, train = policy(shape=(4, MAX_TOKENS // 2))
    train[3, 0] = 7.0
    assert found(make(infer, train)) == {}
    train[1, -1] = 7.0
    assert "sequence 1, token 49999" in found(make(infer, train))["positive"]


def test_one_sequence_longer_than_the_head_is_cut() -> None:
    infer, train = policy(shape=(1, MAX_TOKENS + 10))
    train[0, MAX_TOKENS - 1], train[0, MAX_TOKENS] = 7.0, 8.0
    assert "1 of 100000 values" in found(make(infer, train))["positive"]


def test_infinities_on_both_sides_make_no_warning() -> None:
    infer, train = policy()
    infer[:, :3] = train[:, :3] = -np.inf
    mask = np.ones((B, T), np.bool_)
    mask[0, 10:20] = False
    assert "filler-nan" in [finding.code for finding in check_semantics(make(infer, train, mask=mask), {})]


def test_empty_sequences_between_others() -> None:
    infer, train = policy()
    rows_infer = [infer[0], infer[0, :0], infer[1]]
    rows_train = [np.roll(train[0], 1), train[0, :0], np.roll(train[1], 1)]
    assert "misaligned" in found(make(rows_infer, rows_train))
