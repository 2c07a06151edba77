"""translate: what each tool logs of a batch, in our names, is what we compute of it; and differs as the row says.

Their arithmetic is float32; where it holds, the two agree to its precision. Where it does not, a test says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics import aliases
from tailwatch_service.statistics.aliases.alias import (
    K3_RESOLUTION,
    MICRO_MEANS,
    RANK_MEANS,
    SEQUENCE_MEANS,
    TRANSFORMS,
    Alias,
)
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.registry import METRICS
from tailwatch_service.statistics.translate import (
    UNKNOWN_KEY,
    Mapped,
    UnknownToolError,
    aliases_of,
    tool_of,
    translate,
)
from tests.oracles.families import FAMILIES, Draw, batch_of, log_normal, normal, student_t2
from tests.oracles.tools import TOOLS, Logged, masked_mean, padded

LENGTHS = [3, 40, 17, 64, 1, 33, 50, 8] * 6
DATA: dict[str, Draw] = {
    "normal 0.03": normal(0.03),
    "normal 0.3": normal(0.3),
    "normal 1": normal(1.0),
    "student-t 2": student_t2,
    "log-normal 2": log_normal,
    "30 % zeros": FAMILIES["30 % zeros"],
    "bias over T": FAMILIES["bias over T"],
}


@cache
def within_clamps(data: str) -> tuple[Batch, dict[str, float]]:
    """A batch within the tools' clamps of +-20, so that both mean the same number; and our metrics of it."""
    rng = np.random.default_rng(3)
    rows = [np.clip(row, -4, 4) for row in DATA[data](rng, LENGTHS)]
    scale = min(1.0, 15 / max(abs(float(row.sum())) for row in rows))
    batch = batch_of([row * scale for row in rows], rng)
    # The filter that ROLL and verl report on: ratios from 0.8 to 1.25 pass. verl bounds -d, hence a symmetric one.
    ratio = np.exp(batch.train_logprobs_N - batch.infer_logprobs_N)
    batch = Batch.from_arrays(
        BatchMeta(step=1),
        infer_logprobs=batch.infer_logprobs_N,
        train_logprobs=batch.train_logprobs_N,
        cu_seqlens=batch.offsets_B1,
        mask_post=(ratio >= np.float32(0.8)) & (ratio <= np.float32(1.25)),
    )
    return batch, metrics(summarise(batch)).values


def logged_by(tool: str, batch: Batch, *, double: bool = False) -> dict[str, float]:
    arrays = tuple(a.double() if double and a.is_floating_point() else a for a in padded(batch))
    return {key: float(value) for key, value in TOOLS[tool](*arrays).items()}


@cache
def of_each_sequence(batch: Batch) -> list[dict[str, float]]:
    """Our metrics of each sequence alone."""
    return [
        metrics(
            summarise(
                Batch.from_arrays(
                    BatchMeta(step=1),
                    infer_logprobs=batch.infer_logprobs_N[start:end],
                    train_logprobs=batch.train_logprobs_N[start:end],
                )
            )
        ).values
        for start, end in zip(batch.offsets_B1[:-1], batch.offsets_B1[1:], strict=True)
    ]


def mean_over_sequences(batch: Batch, metric: str) -> float:
    """What `mean of the sequences' means` means."""
    return float(np.mean([values[metric] for values in of_each_sequence(batch)]))


def clamped_k3(batch: Batch) -> Any:
    d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N
    return (np.expm1(d) - d).clip(max=10)


def clamped_k3_by_sequence(batch: Batch) -> float:
    return float((np.add.reduceat(clamped_k3(batch), batch.offsets_B1[:-1]) / batch.lengths_B).mean())


def weights_of(batch: Batch) -> Any:
    return np.exp(batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N)


def ess_of(weights: Any) -> float:
    return float(weights.sum() ** 2 / len(weights) / (weights**2).sum())


def geometric_inverse(batch: Batch) -> float:
    d = batch.train_logprobs_N.astype(np.float64) - batch.infer_logprobs_N
    g = np.add.reduceat(d, batch.offsets_B1[:-1]) / batch.lengths_B
    return float(1 / np.exp(-g).mean())


SPECIAL: dict[tuple[str, str], Callable[[Batch, dict[str, float]], float]] = {
    ("rollout_corr/ppl_ratio", "geometric_ratio_mean"): lambda batch, _: geometric_inverse(batch),
    ("mis_ppl_ratio", "geometric_ratio_mean"): lambda batch, _: geometric_inverse(batch),
    ("rollout_correction/ppl_ratio", "geometric_ratio_mean"): lambda batch, _: geometric_inverse(batch),
    # ours is smaller by 2 (E[w] - 1)
    ("rollout_corr/chi2_token", "chi2_token"): lambda _, ours: ours["chi2_token"] + 2 * (ours["ratio_mean"] - 1),
    ("rollout_corr/rollout_is_mean", "ratio_mean"): lambda batch, _: float(weights_of(batch).clip(max=2).mean()),
    ("rollout_corr/rollout_is_min", "ratio_min"): lambda _, ours: min(ours["ratio_min"], 2.0),
    ("rollout_corr/rollout_is_eff_sample_size", "ess_token"): lambda batch, _: ess_of(weights_of(batch).clip(0, 2)),
    ("rollout_corr/rollout_is_ratio_fraction_high", "above_2"): lambda _, ours: ours["above_2"],
    ("rollout_corr/rollout_is_ratio_fraction_low", "below_1_over_2"): lambda _, ours: ours["below_1_over_2"],
    ("training/rollout_probs_diff_std", "prob_diff_abs_std"): lambda batch, ours: (
        ours["prob_diff_abs_std"] * math.sqrt(batch.tokens / (batch.tokens - 1))
    ),
    ("sampling_importance_ratio", "ratio_mean"): lambda _, ours: ours["ratio_mean"],
    ("rollout_correction/k3_kl", "kl_k3"): lambda batch, _: float(clamped_k3(batch).mean()),
    ("train_rollout_kl", "kl_k3"): lambda batch, _: clamped_k3_by_sequence(batch),
    ("rollout_correction/is_weight_mean", "ratio_mean"): lambda batch, _: float(weights_of(batch).clip(max=2).mean()),
    ("rollout_correction/ess", "ess_token"): lambda batch, _: ess_of(weights_of(batch).clip(0.5, 2)),
    ("**/behave_approx_kl/avg", "kl_k1"): lambda _, ours: ours["kl_k1"],
    ("**/update/old_logp/avg", "infer_logprob_mean"): lambda _, ours: ours["infer_logprob_mean"],
    ("**/update/new_logp/avg", "train_logprob_mean"): lambda _, ours: ours["train_logprob_mean"],
}
"""What an approximate row should give, where pooling alone does not say it."""


def as_described(row: Alias, batch: Batch, ours: dict[str, float]) -> float | None:
    """What the tool's number should be in our terms, by what the row says differs; None: it says only that it does."""
    assert row.metric is not None
    special = SPECIAL.get((row.key, row.metric))
    if special is not None:
        return special(batch, ours)
    if row.pooling is not None and row.pooling.startswith(SEQUENCE_MEANS):
        return mean_over_sequences(batch, row.metric)
    if row.pooling in {RANK_MEANS, MICRO_MEANS} or (row.pooling or "").startswith("mean of "):
        return ours[row.metric]  # one rank, one micro-batch
    return None


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_tool_logs_is_our_metric_or_differs_as_said(tool: str, data: str) -> None:
    batch, ours = within_clamps(data)
    spread = ours["log_ratio_std"]
    # float32 holds 6e-8 of the terms, which are near 1 where the result is near spread².
    least = 3e-7 * (1 + 1 / spread * 0.01)
    found = translate(tool, logged_by(tool, batch))
    assert found.mapped
    said = set()
    for row in found.mapped:
        if row.metric == "tail_weight_scalar":
            continue
        (alias,) = [one for one in aliases_of(tool_of(tool), row.key) if one.metric == row.metric]
        expected = ours[row.metric] if row.exact else as_described(alias, batch, ours)
        if expected is None:
            said.add(row.metric)
            continue
        assert row.value == pytest.approx(expected, rel=2e-4, abs=least), row
    assert said <= {"js"}, said


@pytest.mark.parametrize("tool", TOOLS)
def test_in_float64_their_formula_is_ours(tool: str) -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(normal(1e-3)(rng, LENGTHS), rng)
    ours = metrics(summarise(batch)).values
    for row in translate(tool, logged_by(tool, batch, double=True)).mapped:
        if row.exact and row.metric in ours:
            assert row.value == pytest.approx(ours[row.metric], rel=1e-6, abs=1e-13), row


ELSEWHERE = {"rejected_share", "entropy_train"}
"""Exact rows of what is not computed from the two log-probs; the oracles log the first in one tool only."""


@pytest.mark.parametrize("tool", TOOLS)
def test_every_row_called_exact_is_tried(tool: str) -> None:
    known = tool_of(tool)
    batch, _ = within_clamps("normal 0.3")
    tried = {
        (row.metric, alias.key) for row in translate(tool, logged_by(tool, batch)).mapped for alias in known.aliases
    }
    for alias in known.aliases:
        if alias.exact and alias.metric not in ELSEWHERE:
            assert (alias.metric, alias.key) in tried, alias.key


def test_the_oracles_cover_every_tool() -> None:
    assert set(TOOLS) == set(aliases.TOOLS)


# --- where the same name is another number ------------------------------------------------------------------------


def test_nemo_rl_calls_an_inverted_k3_a_kl() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(student_t2(rng, LENGTHS), rng)
    ours = metrics(summarise(batch)).values
    found = translate("nemo-rl", logged_by("nemo-rl", batch)).values
    assert found["kl_unweighted_reverse_k3"] == pytest.approx(ours["kl_unweighted_reverse_k3"], rel=1e-3)
    assert abs(found["kl_unweighted_reverse_k3"] - ours["kl_reverse_k3"]) > 0.05 * ours["kl_reverse_k3"]
    assert "kl_reverse_k3" not in found


def test_nemo_rls_js_is_ours_to_second_order_only() -> None:
    for spread, close in ((0.01, True), (1.0, False)):
        rng = np.random.default_rng(3)
        batch = batch_of(normal(spread)(rng, LENGTHS), rng)
        ours = metrics(summarise(batch)).values["js"]
        theirs = translate("nemo-rl", logged_by("nemo-rl", batch, double=True)).values["js"]
        assert (abs(theirs / ours - 1) < 0.02) is close


@pytest.mark.parametrize(
    ("tool", "key"),
    [("ms-swift", "rollout_correction/k3_kl"), ("miles", "train/train_rollout_kl")],
)
def test_a_clamp_per_token_lowers_k3_where_the_tail_is_heavy(tool: str, key: str) -> None:
    infer = np.full((1, 1_000), -20.0, np.float32)
    train = infer.copy()
    train[0, 0] = -15.0
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train)
    (row,) = [row for row in translate(tool, logged_by(tool, batch)).mapped if row.key == key]
    assert row.value == pytest.approx(0.01, rel=1e-4)
    assert metrics(summarise(batch)).values["kl_k3"] == pytest.approx((math.exp(5) - 6) / 1_000, rel=1e-9)
    assert not row.exact
    assert "clamped" in row.note


@pytest.mark.parametrize(("tool", "clamped"), [("verl", 0.999), ("ms-swift", 0.999)])
def test_an_ess_of_clamped_weights_hides_the_tail(tool: str, clamped: float) -> None:
    infer = np.full((1, 1_000), -20.0, np.float32)
    train = infer.copy()
    train[0, 0] = -5.0
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train)
    assert metrics(summarise(batch)).values["ess_token"] == pytest.approx(1e-3, rel=0.01)
    (row,) = [row for row in translate(tool, logged_by(tool, batch)).mapped if row.metric == "ess_token"]
    assert row.value > clamped
    assert (row.exact, "hides the tail" in row.note) == (False, True)


def test_chi2_seq_is_of_product_ratios_in_verl_and_of_geometric_ones_in_ms_swift() -> None:
    batch, ours = within_clamps("normal 0.3")
    theirs = translate("verl", logged_by("verl", batch)).values
    assert theirs["chi2_sequence_log10p1"] == pytest.approx(ours["chi2_sequence_log10p1"], rel=1e-4)
    logged = logged_by("ms-swift", batch)
    assert logged["rollout_correction/chi2_seq"] < logged_by("verl", batch)["rollout_corr/chi2_seq"] / 10
    reasons = {row.key: row.reason for row in translate("ms-swift", logged).unmapped}
    assert "geometric" in reasons["rollout_correction/chi2_seq"]


def test_kl_means_another_thing_in_each_trainer_of_trl() -> None:
    assert "kl_k3" in translate("trl-async", {"kl": 0.01}).values
    (row,) = translate("trl", {"kl": 0.01}).unmapped
    assert "reference policy" in row.reason


@pytest.mark.parametrize(
    ("tool", "key", "words"),
    [
        ("skyrl", "policy/loss_metrics/is_ratio_min", "0 where a position is masked"),
        ("skyrl", "policy/loss_metrics/is_ratio_std", "padded matrix"),
        ("roll", "actor/train_infer_token_ratio_mask_mean@sum", "padding counts"),
        ("open-instruct", "debug/vllm_local_reverse_kl", "no divergence"),
        ("trl", "sampling/importance_sampling_ratio/mean", "of whole sequences"),
        ("prime-rl", "mismatch_kl/math/mean", "one environment"),
        ("miles", "train/ess_ratio", "two training policies"),
        ("prime-rl", "off_policy/in_flight/mean", "in flight"),
        ("verl", "training/off_policy/evicted_samples_staleness/mean", "per token"),
        ("verl", "rollout_corr/rollout_is_max", "after truncation"),
        ("verl", "rollout_corr/rollout_rs_seq_mean_k1_max", "rejection criterion"),
        ("verl", "actor/ppo_kl", "two training policies"),
        ("areal", "ppo_actor/update/importance_weight/avg", "two training policies"),
    ],
)
def test_what_has_no_counterpart_says_why(tool: str, key: str, words: str) -> None:
    found = translate(tool, {key: 0.5})
    assert found.mapped == ()
    assert [row.key for row in found.unmapped] == [key]
    assert words in found.unmapped[0].reason


def test_those_numbers_really_are_others() -> None:
    """The traps, on one batch: none of these is what its name suggests."""
    batch, ours = within_clamps("normal 0.3")
    skyrl, roll = logged_by("skyrl", batch), logged_by("roll", batch)
    assert skyrl["policy/loss_metrics/is_ratio_min"] == 0.0 < ours["ratio_min"]
    passed = 1 - translate("roll", roll).values["rejected_share"]
    assert passed == pytest.approx(1 - ours["rejected_share"], rel=1e-6)
    assert roll["actor/train_infer_token_ratio_mask_mean@sum"] > 1.2 * passed
    reverse = logged_by("open-instruct", batch)["debug/vllm_local_reverse_kl"]
    assert abs(reverse - ours["kl_k1"]) > 0.1 * abs(ours["kl_k1"])


@pytest.mark.parametrize(("spread", "least_error"), [(1e-4, 0.05), (1e-5, 5.0)])
def test_float32_cancellation_is_theirs_not_ours(spread: float, least_error: float) -> None:
    """exp(d) - d - 1 in float32 subtracts numbers near 1: at close policies nothing of k3 = d²/2 is left."""
    rng = np.random.default_rng(3)
    batch = batch_of(normal(spread)(rng, [2_000] * 10), rng, spacing=spread)
    d = batch.train_logprobs_N.astype(np.longdouble) - batch.infer_logprobs_N
    exact = float(np.mean(np.expm1(d) - d))
    assert metrics(summarise(batch)).values["kl_k3"] == pytest.approx(exact, rel=1e-9)
    for tool in ("verl", "trl-async", "prime-rl", "nemo-rl"):
        row = next(row for row in translate(tool, logged_by(tool, batch)).mapped if row.metric == "kl_k3")
        # NeMo-RL subtracts the 1 first, which is exact near 1: it loses less.
        least = least_error / 10 if tool == "nemo-rl" else least_error
        assert abs(row.value - exact) > least * exact, f"{tool}: {row.value} for {exact}"
        assert not row.exact, "below its resolution no row is exact"


# --- the mapping itself -------------------------------------------------------------------------------------------


def test_every_row_names_a_metric_or_a_reason() -> None:
    for tool in aliases.TOOLS.values():
        seen = set()
        for alias in tool.aliases:
            assert (alias.key, alias.metric) not in seen, alias.key
            seen.add((alias.key, alias.metric))
            assert alias.metric is None or alias.metric in METRICS, alias.metric
            assert alias.exact or alias.differs, f"{tool.id}: {alias.key} differs, in what?"
            assert alias.metric is not None or alias.note, alias.key
            assert not (alias.exact and alias.pooling), f"{tool.id}: {alias.key} pools otherwise, so it is not exact"


def test_transforms_lead_back() -> None:
    inverse: dict[str, Callable[[float], float]] = {
        "identity": lambda y: y,
        "negate": lambda y: -y,
        "half": lambda y: 2 * y,
        "double": lambda y: y / 2,
        "reciprocal": lambda y: 1 / y,
        "complement": lambda y: 1 - y,
        "log10p1": lambda y: 10**y - 1,
    }
    assert set(inverse) == set(TRANSFORMS)
    for name, transform in TRANSFORMS.items():
        assert inverse[name](transform(0.37)) == pytest.approx(0.37)


@pytest.mark.parametrize("name", ["verl", "VERL", " verl ", "NeMo-RL", "nemo-rl", "TRL async_grpo", "open-instruct"])
def test_tools_by_id_or_name(name: str) -> None:
    assert name.strip().lower() in {tool_of(name).id, tool_of(name).name.lower()}


def test_an_unknown_tool_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownToolError, match="'verk' is not one of verl, trl"):
        translate("verk", {})


def test_prefixes_of_loggers() -> None:
    assert translate("slime", {"train/tis": 1.01}).values == {"ratio_mean": 1.01}
    assert translate("slime", {"tis": 1.01}).values == {"ratio_mean": 1.01}
    assert translate("verl", {"train/rollout_corr/kl": 0.1}).values == {}


def test_areal_scopes_are_any() -> None:
    for prefix in ("", "ppo_actor/update/", "anything/at/all/"):
        assert "kl_k3" in translate("areal", {f"{prefix}compute_logp/kl_div_dual/avg": 0.1}).values
    assert translate("areal", {"xcompute_logp/kl_div_dual/avg": 0.1}).values == {}


def test_one_key_can_give_two_metrics_and_two_keys_one() -> None:
    found = translate("tinker", {"optim/kl_sample_train_v1": 0.25, "optim/kl_sample_train_v2": 0.5})
    assert found.values == {"kl_k1": 0.25, "log_ratio_mean": -0.25, "kl_k2": 0.5, "second_moment": 1.0}
    both = translate("miles", {"train/train_rollout_kl": 0.1, "train/mis_k3_kl": 0.2})
    assert [row.value for row in both.mapped] == [0.1, 0.2]


def test_values_prefer_an_exact_row() -> None:
    rows = {"policy/minibatch_rollout_logprobs_abs_diff_mean": 2.0, "policy/rollout_train_logprobs_abs_diff_mean": 1.0}
    assert translate("skyrl", rows).values["log_ratio_abs_mean"] == 1.0
    assert translate("skyrl", dict(reversed(rows.items()))).values["log_ratio_abs_mean"] == 1.0


@pytest.mark.parametrize("value", [None, "0.1", True, [0.1], {}])
def test_what_is_no_number_is_left_out(value: Any) -> None:
    (row,) = translate("verl", {"rollout_corr/kl": value}).unmapped
    assert "is not a number" in row.reason


@pytest.mark.parametrize(
    ("key", "value"),
    [("rollout_corr/kl", math.nan), ("rollout_corr/chi2_seq", -1.0), ("rollout_corr/chi2_seq", -2.0)],
)
def test_a_number_that_says_nothing(key: str, value: float) -> None:
    found = translate("verl", {key: value})
    assert found.mapped == ()
    assert "says nothing about" in found.unmapped[0].reason


def test_infinities_pass_through() -> None:
    assert translate("verl", {"rollout_corr/k3_kl": math.inf}).values == {"kl_k3": math.inf}
    assert translate("verl", {"rollout_corr/ppl_ratio": 0.0}).values == {"geometric_ratio_mean": math.inf}


def test_an_unknown_key_is_not_guessed() -> None:
    found = translate("verl", {"rollout_corr/k3": 0.1, "critic/score/mean": 0.5, "": 1.0, "x" * 10_000: 1.0})
    assert found.mapped == ()
    assert {row.reason for row in found.unmapped} == {UNKNOWN_KEY}


def test_a_small_k3_is_not_called_exact() -> None:
    def row_of(value: float) -> Mapped:
        (row,) = translate("verl", {"rollout_corr/k3_kl": value}).mapped
        return row

    assert (row_of(K3_RESOLUTION).exact, row_of(K3_RESOLUTION).note) == (True, "")
    assert not row_of(K3_RESOLUTION / 2).exact
    assert row_of(K3_RESOLUTION / 2).note == "float32: off by over 1 % below 5e-07"


def test_tail_weight_from_two_scalars() -> None:
    batch, ours = within_clamps("student-t 2")
    logged = logged_by("miles", batch, double=True)
    found: dict[str, Mapped] = {}
    for row in translate("miles", logged).mapped:
        found.setdefault(row.metric, row)
    k3, size = found["kl_k3"].value, found["log_ratio_abs_mean"].value
    assert found["tail_weight_scalar"].value == pytest.approx(2 * k3 / (size * math.sqrt(math.pi / 2)) ** 2)
    assert found["tail_weight_scalar"].value == pytest.approx(ours["tail_weight_scalar"], rel=0.3)
    assert not found["tail_weight_scalar"].exact
    for size_logged in (0.0, math.nan, 1e-200):
        line = {"train_rollout_kl": 0.1, "train_rollout_logprob_abs_diff": size_logged}
        assert "tail_weight_scalar" not in translate("miles", line).values


# --- the real functions -------------------------------------------------------------------------------------------


def test_verls_own_functions() -> None:
    helper = pytest.importorskip(
        "verl.trainer.ppo.rollout_corr_helper",
        reason="verl is an optional extra of 1.4 GB: pip install --no-deps verl==0.9.1 and ray, tensordict==0.10.0, "
        "omegaconf, transformers==5.10.4, codetiming; the same formulas are re-derived above",
    )
    for data in DATA:
        batch, ours = within_clamps(data)
        rollout, train, mask = padded(batch)
        _, _, logged = helper.compute_rollout_correction_and_rejection_mask(
            old_log_prob=train,
            rollout_log_prob=rollout,
            response_mask=mask.float(),
            rollout_is="token",
            rollout_is_threshold=2.0,
            rollout_rs="token_k1",
            rollout_rs_threshold="0.8_1.25",
        )
        found = translate("verl", {key: float(value) for key, value in logged.items()})
        assert len([row for row in found.mapped if row.exact]) >= 12
        for row in found.mapped:
            (alias,) = [one for one in aliases_of(tool_of("verl"), row.key) if one.metric == row.metric]
            expected = ours[row.metric] if row.exact else as_described(alias, batch, ours)
            assert expected is not None, row
            assert row.value == pytest.approx(expected, rel=2e-4, abs=1e-6), (data, row)
        debug = pytest.importorskip("verl.utils.debug.metrics")
        fields = {"rollout_log_probs": rollout, "old_log_probs": train, "response_mask": mask, "responses": mask}
        compared = translate("verl", debug.calculate_debug_metrics(SimpleNamespace(batch=fields)))
        assert {row.metric for row in compared.mapped} == {
            "prob_diff_abs_mean", "prob_diff_abs_max", "prob_diff_abs_std", "prob_pearson",
        }  # fmt: skip
        for row in compared.mapped:
            assert row.value == pytest.approx(ours[row.metric], rel=1e-3, abs=1e-6), (data, row)


def test_the_reduction_of_the_oracles_is_theirs() -> None:
    """masked_mean with 1e-8 below: the same number wherever a token is in the mask."""
    values, mask = torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([[True, True, False]])
    assert float(masked_mean(values, mask)) == 2.0
    logged: Logged = {"x": masked_mean(values, mask, 1)}
    assert logged["x"].tolist() == [2.0]
