"""What-if against brute force on the tokens: every correction, light and heavy tails, both signs of the advantage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import Summary, merge, schema, summarise
from tailwatch_collectors.summary.grid import Grid, cell_count
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.corrections import CORRECTIONS
from tailwatch_service.statistics.whatif import NO_SIGNS, Outcome, WhatIfError, what_if

Floats = NDArray[np.float64]
SEQUENCES = 4_000
LENGTH = 40


@dataclass
class Tokens:
    """The tokens themselves."""

    d_CT: Floats
    sign_C: Floats
    summary: Summary


def tokens(*, spread: float, degrees: float, seed: int = 3) -> Tokens:
    """Student-t noise around sampled log-probs, every other sequence with a positive advantage, some with 0."""
    rng = np.random.default_rng(seed)
    infer = -rng.exponential(3.0, (SEQUENCES, LENGTH)).astype(np.float32) - np.float32(8.0)
    noise = np.clip(spread * rng.standard_t(degrees, infer.shape), -7.0, 7.0)
    noise += spread * rng.normal(0, 0.2, (SEQUENCES, 1))
    train = (infer + noise).astype(np.float32)
    sign_C = np.array([1.0, -1.0, 1.0, 0.0] * (SEQUENCES // 4))
    batches = []
    for part in range(2):
        half = slice(part * SEQUENCES // 2, (part + 1) * SEQUENCES // 2)
        batches.append(
            Batch.from_arrays(
                BatchMeta(step=0, part=part),
                infer_logprobs=infer[half].ravel(),
                train_logprobs=train[half].ravel(),
                cu_seqlens=np.arange(0, SEQUENCES // 2 * LENGTH + 1, LENGTH),
                advantage=sign_C[half].astype(np.float32),
            )
        )
    d_CT = train.astype(np.float64) - infer.astype(np.float64)
    return Tokens(d_CT, sign_C, merge(map(summarise, batches)))


LIGHT = tokens(spread=0.05, degrees=30.0)
HEAVY = tokens(spread=0.25, degrees=2.5)
BOTH = pytest.mark.parametrize("data", [LIGHT, HEAVY], ids=["light", "heavy"])


def replayed(data: Tokens, name: str, **bounds: float) -> Outcome:
    found = what_if(data.summary, name, **bounds)
    assert isinstance(found, Outcome)
    return found


def effective(weights: Floats) -> float:
    return float(weights.sum() ** 2 / (weights.size * (weights**2).sum()))


def close(found: float | None, wanted: float, *, count: int) -> bool:
    """Within 1 %, or within two units where there are few."""
    assert found is not None
    return math.isclose(found, wanted, rel_tol=0.01, abs_tol=2 / count)


@BOTH
@pytest.mark.parametrize("name", ["tis_token", "cispo"])
@pytest.mark.parametrize("upper", [1.02, 1.07, 1.2, 2.0, 3.3, 7.0, 20.0])
def test_truncation_of_tokens(data: Tokens, name: str, upper: float) -> None:
    w = np.exp(data.d_CT)
    found = replayed(data, name, upper=upper)
    cut = np.minimum(w, upper)
    assert close(found.share, float((w > upper).mean()), count=w.size)
    assert abs(found.share - float((w > upper).mean())) <= found.share_error + 1e-12
    assert found.mean_after == pytest.approx(cut.mean(), rel=2e-3)
    assert found.ess_after == pytest.approx(effective(cut), rel=5e-3)
    assert found.ess_before == pytest.approx(effective(w), rel=1e-9)
    assert found.mean_before == pytest.approx(w.mean(), rel=1e-9)
    assert (found.below, found.unit) == (0.0, "tokens")
    assert sum(one.share * one.count for one in found.signs) == pytest.approx(found.share * w.size)


@BOTH
@pytest.mark.parametrize(("name", "bounds"), [("icepop", {"lower": 0.5, "upper": 5.0}), ("mis_token", {"upper": 1.31})])
def test_masking_of_tokens(data: Tokens, name: str, bounds: dict[str, float]) -> None:
    w = np.exp(data.d_CT)
    found = replayed(data, name, **bounds)
    dropped = (w > bounds["upper"]) | (w < bounds.get("lower", 0.0))
    kept = np.where(dropped, 0.0, w)
    assert close(found.share, float(dropped.mean()), count=w.size)
    assert found.mean_after == pytest.approx(kept.mean(), rel=2e-3)
    assert found.ess_after == pytest.approx(effective(kept), rel=5e-3)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("icepop", 0.5, 5.0), ("icepop", 0.25, 10.0), ("icepop", 1 / 1.28, 1.5)]
)
def test_counted_bounds_are_exact(name: str, low: float, high: float) -> None:
    w = np.exp(HEAVY.d_CT)
    found = replayed(HEAVY, name, lower=low, upper=high)
    assert found.share_error == 0.0
    assert found.above * w.size == pytest.approx(np.count_nonzero(HEAVY.d_CT > math.log(high)), abs=1e-6)
    assert found.below * w.size == pytest.approx(np.count_nonzero(HEAVY.d_CT < math.log(low)), abs=1e-6)


def clipped(data: Tokens, lower: float, upper: float) -> tuple[NDArray[np.bool_], Floats]:
    """Which tokens lose their gradient, and what each weighs after it."""
    w, sign = np.exp(data.d_CT), data.sign_C[:, None]
    lost = ((w > upper) & (sign > 0)) | ((w < lower) & (sign < 0))
    return lost, np.where(lost, 0.0, w)


@BOTH
@pytest.mark.parametrize(
    ("name", "lower", "upper"), [("ppo_clip", 0.8, 1.2), ("ppo_clip", 0.83, 1.17), ("alp_clip", 0.5, 4.0)]
)
def test_a_clip_on_tokens_acts_on_the_side_of_the_advantage(
    data: Tokens, name: str, lower: float, upper: float
) -> None:
    lost, weights = clipped(data, lower, upper)
    found = replayed(data, name, lower=lower, upper=upper)
    assert close(found.above, float((np.exp(data.d_CT) > upper).mean()), count=lost.size)
    assert close(found.below, float((np.exp(data.d_CT) < lower).mean()), count=lost.size)
    assert close(found.share, float(lost.mean()), count=lost.size)
    assert abs(found.share - float(lost.mean())) <= found.share_error + 1e-12
    assert found.token_share == found.share
    assert found.ess_after == pytest.approx(effective(weights), rel=5e-3)
    assert found.mean_after == pytest.approx(weights.mean(), rel=2e-3)
    assert found.missing is None
    by_sign = {one.sign: one for one in found.signs}
    assert {sign: one.count for sign, one in by_sign.items()} == {
        "negative": lost.size // 4, "zero": lost.size // 4, "positive": lost.size // 2
    }  # fmt: skip
    assert by_sign["zero"].share == 0.0
    for sign, value in (("negative", -1.0), ("positive", 1.0)):
        mine = lost[data.sign_C == value]
        assert close(by_sign[sign].share, float(mine.mean()), count=mine.size)


@BOTH
def test_what_a_clip_touches_without_signs_is_the_most_it_can(data: Tokens) -> None:
    unknown = schema.ADVANTAGE_SIGNS.index("unknown")
    size = cell_count(schema.TOKEN_BITS)
    pooled = Grid(data.summary.grid.keys + unknown * size, data.summary.grid.counts)
    found = what_if(replace(data.summary, sign_grid=pooled), "ppo_clip", lower=0.8, upper=1.2)
    assert isinstance(found, Outcome)
    assert found.share == found.above + found.below
    assert (found.ess_after, found.mean_after, found.missing) == (None, None, NO_SIGNS)
    assert [(one.sign, one.share) for one in found.signs] == [("unknown", found.share)]


@BOTH
def test_shares_by_sign_of_a_mask_on_tokens(data: Tokens) -> None:
    w = np.exp(data.d_CT)
    found = replayed(data, "icepop", lower=0.5, upper=2.0)
    assert found.share * w.size == pytest.approx(np.count_nonzero((w > 2.0) | (w < 0.5)), abs=1e-6)
    assert sum(one.share * one.count for one in found.signs) == pytest.approx(found.share * w.size)
    for one, value in zip(found.signs, (-1.0, 0.0, 1.0), strict=True):
        mine = w[data.sign_C == value]
        assert close(one.share, float(((mine > 2.0) | (mine < 0.5)).mean()), count=mine.size)


TOKEN_BOUNDS = {
    "tis_token": (None, (1.01, 20.0)), "mis_token": (None, (1.01, 20.0)), "cispo": (None, (1.01, 20.0)),
    "icepop": ((0.05, 0.99), (1.01, 20.0)), "ppo_clip": ((0.05, 0.99), (1.01, 10.0)),
    "alp_clip": ((0.05, 0.99), (1.01, 10.0)),
}  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    name=st.sampled_from(sorted(TOKEN_BOUNDS)),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    heavy=st.booleans(),
)
def test_any_bound_on_tokens_is_within_one_percent(name: str, places: tuple[float, float], heavy: bool) -> None:
    data = HEAVY if heavy else LIGHT
    bounds = {
        field: span[0] + (span[1] - span[0]) * place**3
        for field, span, place in zip(("lower", "upper"), TOKEN_BOUNDS[name], places, strict=True)
        if span is not None
    }
    found = replayed(data, name, **bounds)
    w, sign = np.exp(data.d_CT), data.sign_C[:, None]
    above, below = w > bounds["upper"], w < bounds.get("lower", 0.0)
    clips = name.endswith("_clip")
    touched = (above & (sign > 0)) | (below & (sign < 0)) if clips else above | below
    wanted = float(touched.mean())
    assert abs(found.share - wanted) <= max(0.01 * wanted, 3 / w.size)
    assert abs(found.share - wanted) <= found.share_error + 1e-9
    truncates = name in {"tis_token", "cispo"}
    weights = np.minimum(w, bounds["upper"]) if truncates else np.where(touched, 0.0, w)
    assert found.mean_after == pytest.approx(float(weights.mean()), rel=0.01)
    assert found.ess_after == pytest.approx(effective(weights), rel=0.01)


SEQUENCE_BOUNDS = {
    "tis_sequence": (None, (1.05, 20.0)), "mis_sequence": ((0.05, 0.95), (1.05, 20.0)),
    "mis_geometric": ((0.9, 0.9995), (1.0005, 1.1)), "gspo": ((0.9, 0.9995), (1.0005, 1.1)),
    "veto": ((0.01, 0.5), None),
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SEQUENCE_BOUNDS)),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    heavy=st.booleans(),
)
def test_any_bound_on_sequences_is_within_what_it_says(name: str, places: tuple[float, float], heavy: bool) -> None:
    data = HEAVY if heavy else LIGHT
    bounds = {
        field: span[0] + (span[1] - span[0]) * place
        for field, span, place in zip(("lower", "upper"), SEQUENCE_BOUNDS[name], places, strict=True)
        if span is not None
    }
    found = replayed(data, name, **bounds)
    d = data.d_CT
    logs = d.min(axis=1) if name == "veto" else d.sum(axis=1) if name.endswith("_sequence") else d.mean(axis=1)
    above = logs > math.log(bounds.get("upper", math.inf))
    below = logs < math.log(bounds["lower"]) if "lower" in bounds else np.zeros(len(logs), bool)
    clips = name == "gspo"
    touched = (above & (data.sign_C > 0)) | (below & (data.sign_C < 0)) if clips else above | below
    wanted = float(touched.mean())
    assert abs(found.share - wanted) <= found.share_error + 1e-9
    # A grid of a few thousand sequences is no finer than its sample: a cell's split is off by its own noise.
    assert abs(found.share - wanted) <= 0.01 * wanted + 3 * math.sqrt(found.share_error / SEQUENCES) + 1e-3
    weight = np.ones(SEQUENCES) if name in {"veto", "mis_geometric"} else np.exp(logs)
    after = np.minimum(weight, bounds["upper"]) if name == "tis_sequence" else np.where(touched, 0.0, weight)
    assert found.mean_after == pytest.approx(float(after.mean()), rel=0.02, abs=5e-3)


@BOTH
@pytest.mark.parametrize("budget", [0.0008, 0.01, 0.04, 0.2])
def test_a_budget_drops_the_largest(data: Tokens, budget: float) -> None:
    size = np.sort(np.abs(data.d_CT).ravel())
    moment = np.cumsum(size**2) / np.arange(1, size.size + 1)
    kept = int(np.searchsorted(moment, budget, side="right"))
    found = replayed(data, "m2po", budget=budget)
    assert found.share == pytest.approx(1 - kept / size.size, rel=0.01, abs=1e-3 * (kept < size.size))
    if kept < size.size:
        assert found.upper == pytest.approx(math.exp(size[kept]), rel=0.01)
        assert found.lower == pytest.approx(math.exp(-size[kept]), rel=0.01)
    weights = np.where(np.abs(data.d_CT) <= size[kept - 1], np.exp(data.d_CT), 0.0)
    assert found.mean_after == pytest.approx(weights.mean(), rel=5e-3)


@BOTH
@pytest.mark.parametrize("upper", [1.5, 2.0, 6.0])
def test_truncation_of_sequences(data: Tokens, upper: float) -> None:
    weight = np.exp(data.d_CT.sum(axis=1))
    found = replayed(data, "tis_sequence", upper=upper)
    cut = np.minimum(weight, upper)
    assert close(found.share, float((weight > upper).mean()), count=SEQUENCES)
    assert found.ess_after == pytest.approx(effective(cut), rel=0.01)
    assert found.mean_after == pytest.approx(cut.mean(), rel=0.01)
    assert found.ess_before == pytest.approx(effective(weight), rel=1e-9)
    assert found.token_share == pytest.approx(found.share)


@BOTH
def test_masking_of_sequences_by_sign(data: Tokens) -> None:
    weight = np.exp(data.d_CT.sum(axis=1))
    found = replayed(data, "mis_sequence", lower=0.5, upper=2.0)
    dropped = (weight > 2.0) | (weight < 0.5)
    assert close(found.share, float(dropped.mean()), count=SEQUENCES)
    assert found.ess_after == pytest.approx(effective(np.where(dropped, 0.0, weight)), rel=0.01)
    assert [(one.sign, one.count) for one in found.signs] == [
        ("negative", 1000),
        ("zero", 1000),
        ("positive", 2000),
    ]
    for one, value in zip(found.signs, (-1.0, 0.0, 1.0), strict=True):
        assert close(one.share, float(dropped[data.sign_C == value].mean()), count=one.count)


@BOTH
def test_geometric_masking_leaves_weights_of_one(data: Tokens) -> None:
    ratio = np.exp(data.d_CT.mean(axis=1))
    found = replayed(data, "mis_geometric", lower=0.98, upper=1.02)
    dropped = (ratio > 1.02) | (ratio < 0.98)
    assert close(found.share, float(dropped.mean()), count=SEQUENCES)
    assert found.ess_before == 1.0
    assert found.mean_after == pytest.approx(1 - found.share)
    assert found.ess_after == pytest.approx(1 - found.share)


@BOTH
def test_gspo_takes_the_gradient_on_the_side_of_the_advantage(data: Tokens) -> None:
    ratio = np.exp(data.d_CT.mean(axis=1))
    found = replayed(data, "gspo", lower=0.99, upper=1.01)
    dropped = ((ratio > 1.01) & (data.sign_C > 0)) | ((ratio < 0.99) & (data.sign_C < 0))
    assert close(found.share, float(dropped.mean()), count=SEQUENCES)
    by_sign = {one.sign: one.share for one in found.signs}
    assert by_sign["zero"] == 0.0
    assert close(by_sign["positive"], float(dropped[data.sign_C > 0].mean()), count=2000)
    assert found.ess_after == pytest.approx(effective(np.where(dropped, 0.0, ratio)), rel=0.01)


def test_veto_drops_the_sequence_of_one_bad_token() -> None:
    found = replayed(HEAVY, "veto", lower=0.2)
    dropped = HEAVY.d_CT.min(axis=1) < math.log(0.2)
    assert 0.05 < dropped.mean() < 0.9
    assert close(found.share, float(dropped.mean()), count=SEQUENCES)
    assert found.mean_after == pytest.approx(1 - found.share)


def test_every_correction_answers_with_its_own_bounds() -> None:
    for name in CORRECTIONS:
        found = replayed(HEAVY, name)
        assert 0.0 <= found.share <= 1.0
        assert 0.0 <= found.token_share <= 1.0
        assert found.ess_after is None or 0.0 <= found.ess_after <= 1.0


def test_no_tokens_is_a_reason() -> None:
    assert what_if(Summary.empty(), "tis_token") == "no valid tokens"
    assert what_if(Summary.empty(), "gspo") == "no complete sequences"


def test_identical_engines_are_left_alone() -> None:
    infer = -np.ones(100, np.float32)
    batch = Batch.from_arrays(
        BatchMeta(step=0), infer_logprobs=infer, train_logprobs=infer, cu_seqlens=np.array([0, 50, 100])
    )
    for name in CORRECTIONS:
        found = what_if(summarise(batch), name)
        assert isinstance(found, Outcome)
        assert (found.share, found.ess_before) == (0.0, 1.0)
        assert found.ess_after in {1.0, None}


def test_extreme_log_ratios_do_not_overflow() -> None:
    infer = np.array([-1.0, -1e6, -4000.0, -1.0], np.float32)
    train = np.array([-1e6, -1.0, -1.0, -4000.0], np.float32)
    batch = Batch.from_arrays(
        BatchMeta(step=0), infer_logprobs=infer, train_logprobs=train, cu_seqlens=np.array([0, 2, 4])
    )
    for name in CORRECTIONS:
        found = what_if(summarise(batch), name)
        assert isinstance(found, Outcome)
        for value in (found.share, found.ess_before, found.ess_after or 0.0, found.mean_after or 0.0):
            assert math.isfinite(value)


@pytest.mark.parametrize(
    ("name", "bounds", "field", "word"),
    [
        ("tis_token+mis_geometric", {}, "correction", "which token is in"),
        ("clip", {}, "correction", "tis_token"),
        ("tis_token", {"lower": 0.5}, "lower", "no lower"),
        ("icepop", {"upper": 0.2}, "upper", "outside 1.01"),
        ("icepop", {"lower": math.nan}, "lower", "nan"),
        ("m2po", {"budget": 7.0}, "budget", "outside"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, bounds: dict[str, float], field: str, word: str) -> None:
    with pytest.raises(WhatIfError, match=word) as refused:
        what_if(LIGHT.summary, name, **bounds)
    assert refused.value.field == field
