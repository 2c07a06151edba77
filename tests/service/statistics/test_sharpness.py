"""Sharpness on its null model: logits with noise of a known scale, and a vocabulary that is all there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import Computed, metrics
from tests.oracles.families import batch_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sampled:
    """Tokens sampled from softmaxes, and what the softmaxes say of them."""

    batch: Batch
    p_N: Floats
    other_N: Floats


def sampled(noise: float, *, tokens: int = 20_000, vocabulary: int = 16, seed: int = 1, send: bool = True) -> Sampled:
    """Sampling from clean logits; the trainer's have Gaussian noise of scale `noise`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (tokens, vocabulary)) * rng.uniform(0.5, 5, (tokens, 1))
    clean = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = (np.log(-np.log(rng.random(clean.shape))) * -1 + clean).argmax(axis=1)
    shaken = logits + rng.normal(0, noise, logits.shape)
    shaken -= np.log(np.exp(shaken).sum(axis=1, keepdims=True))
    index = np.arange(tokens)
    p = np.exp(shaken)
    chosen_p = p[index, chosen]
    other = (p * p).sum(axis=1) - chosen_p**2
    batch = Batch.from_arrays(
        BatchMeta(step=1),
        infer_logprobs=clean[index, chosen].astype(np.float32),
        train_logprobs=np.minimum(shaken[index, chosen], 0).astype(np.float32),
        cu_seqlens=np.arange(0, tokens + 1, 100),
        sum_p2_other=other.astype(np.float32) if send else None,
    )
    return Sampled(batch, chosen_p, other)


def computed(made: Sampled) -> Computed:
    return metrics(summarise(made.batch))


@pytest.mark.parametrize("noise", [1e-3, 0.01, 0.1])
def test_the_residual_is_the_noise_of_the_logits(noise: float) -> None:
    assert computed(sampled(noise)).values["sharpness_residual"] == pytest.approx(noise, rel=0.02)


def test_norms_and_trace_against_the_softmax() -> None:
    made = sampled(0.05)
    values = computed(made).values
    assert values["score_norm_sq_mean"] == pytest.approx(float(((1 - made.p_N) ** 2 + made.other_N).mean()), rel=1e-5)
    assert values["fisher_trace"] == pytest.approx(float((1 - made.p_N**2 - made.other_N).mean()), rel=1e-5)


def test_a_sharper_policy_shows_in_the_norm_and_not_in_the_residual() -> None:
    flat, sharp = (computed(sampled(0.01, vocabulary=vocabulary)).values for vocabulary in (2, 64))
    assert sharp["score_norm_sq_mean"] > 1.5 * flat["score_norm_sq_mean"]
    assert sharp["sharpness_residual"] == pytest.approx(flat["sharpness_residual"], rel=0.05)


def proportional(scale: float, *, seed: int = 1) -> Batch:
    """d = scale * (1 - p) * Z: the score's norm where no other token has weight."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.002, 0.998, 60_000)
    infer = np.log(p).astype(np.float32)
    train = (infer + scale * (1 - p) * rng.normal(size=len(p))).astype(np.float32)
    return Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=np.minimum(train, 0))


@pytest.mark.parametrize("scale", [1e-3, 0.02])
def test_the_slope_is_the_median_size_of_noise_per_unit_of_norm(scale: float) -> None:
    values = metrics(summarise(proportional(scale))).values
    assert values["sharpness_slope"] == pytest.approx(0.67449 * scale, rel=0.03)
    # The improbable tokens' sd is close to `scale`, that of the confident ones to a 17th of it.
    assert values["sharpness_low_high"] == pytest.approx(
        values["envelope_width_low"] / values["envelope_width_high"], rel=1e-12
    )
    assert 10 < values["sharpness_low_high"] < 20


def test_the_slope_against_the_tokens() -> None:
    batch = proportional(0.3, seed=2)
    d = np.abs(batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N)
    complement = -np.expm1(batch.infer_logprobs_N.astype(np.float64))
    edges = np.log(np.array([1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999]))
    bin_N = np.searchsorted(edges.astype(np.float32), batch.infer_logprobs_N, side="right")
    points = []
    for one in np.unique(bin_N):
        inside = bin_N == one
        if inside.sum() >= 50:
            points.append((min(inside.sum(), 10_000), complement[inside].mean(), np.median(d[inside])))
    n, x, y = np.array(points).T
    found = metrics(summarise(batch)).values["sharpness_slope"]
    assert found == pytest.approx(np.polyfit(x, y, 1, w=np.sqrt(n))[0], rel=0.02)


def test_near_certain_tokens_do_not_outweigh_the_others() -> None:
    # p of 0.15, 0.4 and 0.95 with |d| of 0.5, 0.1 and 0.02: most tokens are certain.
    counts, p, size = (2_000, 3_000, 90_000), (0.15, 0.4, 0.95), (0.5, 0.1, 0.02)
    infer = np.log(np.repeat(p, counts)).astype(np.float32)
    batch = Batch.from_arrays(
        BatchMeta(step=1), infer_logprobs=infer, train_logprobs=(infer - np.repeat(size, counts)).astype(np.float32)
    )
    slope = np.polyfit(1 - np.array(p), size, 1, w=np.sqrt([2_000, 3_000, 10_000]))[0]
    assert metrics(summarise(batch)).values["sharpness_slope"] == pytest.approx(slope, rel=0.02)


def test_what_was_not_sent_is_missing() -> None:
    found = computed(sampled(0.1, tokens=2_000, send=False))
    for name in ("score_norm_sq_mean", "fisher_trace", "sharpness_residual"):
        assert found.missing[name] == "the trainer sent no sum_p2_other"
    assert "sharpness_slope" in found.values


def test_reasons_on_little_data() -> None:
    rng = np.random.default_rng(3)
    few = metrics(summarise(batch_of([np.full(40, 0.1)], rng)))
    assert few.missing["sharpness_slope"] == "0 probability bins with 50 tokens, needs 3"
    assert "needs 20" in few.missing["sharpness_low_high"]
    certain = Batch.from_arrays(
        BatchMeta(step=1),
        infer_logprobs=np.zeros(300, np.float32),
        train_logprobs=np.zeros(300, np.float32),
        sum_p2_other=np.zeros(300, np.float32),
    )
    found = metrics(summarise(certain))
    assert found.missing["sharpness_residual"] == "no token whose score is above rounding"
    assert (found.values["score_norm_sq_mean"], found.values["fisher_trace"]) == (0.0, 0.0)
    same = proportional(0.0)
    assert metrics(summarise(same)).missing["sharpness_low_high"].startswith("the envelope of confident tokens")
    assert math.isclose(metrics(summarise(same)).values["sharpness_slope"], 0.0, abs_tol=1e-12)
