"""What other tools log, re-derived from their documented behaviour in torch, against ours through the aliases.

Their arithmetic is float32; where it holds, the two agree to its precision. Where it does not, a test says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tailwatch_collectors.batch import Batch
from tailwatch_collectors.summary import summarise
from tailwatch_collectors.types import BatchMeta
from tailwatch_service.statistics.compute import metrics
from tailwatch_service.statistics.registry import METRICS
from tests.oracles.families import FAMILIES, Draw, batch_of, log_normal, normal, student_t2

Tensor = torch.Tensor
Logged = dict[str, Tensor]


def padded(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T] rollout and training log-probs in float32 and their mask, right-padded with 0.0 as trainers hold them."""
    lengths = batch.lengths_B.tolist()
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    rollout, train = torch.zeros(mask.shape), torch.zeros(mask.shape)
    rollout[mask] = torch.tensor(batch.infer_logprobs_N)
    train[mask] = torch.tensor(batch.train_logprobs_N)
    return rollout, train, mask


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """verl's masked mean: 1e-8 in the denominator."""
    if dim is None:
        return (values * mask).sum() / (mask.sum() + 1e-8)
    return (values * mask).sum(dim) / (mask.sum(dim) + 1e-8)


def verl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    d = train - rollout
    per_sequence_train, per_sequence_rollout = masked_mean(train, mask, 1), masked_mean(rollout, mask, 1)
    gap = per_sequence_rollout - per_sequence_train
    p, q = train.exp()[mask], rollout.exp()[mask]
    ratio = d.clamp(-20, 20).exp()
    weights = ratio[mask]
    return {
        "rollout_corr/kl": masked_mean(-d, mask),
        "rollout_corr/k3_kl": masked_mean(d.exp() - d - 1, mask),
        "rollout_corr/training_ppl": (-per_sequence_train).exp().mean(),
        "rollout_corr/rollout_ppl": (-per_sequence_rollout).exp().mean(),
        "rollout_corr/log_ppl_diff": gap.mean(),
        "rollout_corr/log_ppl_abs_diff": gap.abs().mean(),
        "rollout_corr/log_ppl_diff_max": gap.max(),
        "rollout_corr/log_ppl_diff_min": gap.min(),
        "rollout_corr/chi2_token": masked_mean(ratio.square(), mask) - 1,
        "rollout_corr/chi2_seq": (2 * (d * mask).sum(1).clamp(-20, 20)).exp().mean() - 1,
        "rollout_corr/rollout_is_eff_sample_size": 1 / (weights / weights.mean()).square().mean(),
        "training/rollout_probs_diff_mean": (p - q).abs().mean(),
        "training/rollout_probs_diff_max": (p - q).abs().max(),
        "training/rollout_probs_diff_std": (p - q).abs().std(),
        "training/rollout_actor_probs_pearson_corr": torch.corrcoef(torch.stack((p, q)))[0, 1],
    }


def trl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    d = (train - rollout)[mask]
    return {
        "sampling/sampling_logp_difference/mean": d.abs().mean(),
        "kl of experimental async_grpo": (d.exp() - d - 1).mean(),
    }


def prime_rl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    d = (train - rollout)[mask]
    return {"mismatch_kl": (d.exp() - d - 1).mean()}


def nemo_rl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    d = train - rollout
    return {
        "gen_kl_error": masked_mean(d.exp() - 1 - d, mask),
        "policy_kl_error": masked_mean((-d).exp() - 1 + d, mask),
        "token_mult_prob_error": masked_mean(d.abs().exp(), mask),
    }


TOOLS: dict[str, Callable[[Tensor, Tensor, Tensor], Logged]] = {
    "verl": verl,
    "TRL": trl,
    "prime-rl": prime_rl,
    "NeMo-RL": nemo_rl,
}


def ours_for(tool: str, name: str) -> str:
    """The canonical name whose alias in `tool` starts with that name; the most literal one where there are two."""
    aliases = {canonical: metric.aliases[tool] for canonical, metric in METRICS.items() if tool in metric.aliases}
    found = [c for c, alias in aliases.items() if alias == name] or [
        c for c, alias in aliases.items() if alias.startswith(f"{name} (")
    ]
    assert len(found) == 1, f"{tool} {name}: {found}"
    return found[0]


def as_logged(name: str, value: float, tokens: int) -> float:
    """Ours in their convention, where the alias says that it differs."""
    if name == "rollout_corr/chi2_seq":
        return float(np.power(10.0, value)) - 1.0
    if name == "training/rollout_probs_diff_std":  # theirs divides by N - 1
        return value * math.sqrt(tokens / (tokens - 1))
    return value


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


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("tool", TOOLS)
def test_what_other_tools_log(tool: str, data: str) -> None:
    rng = np.random.default_rng(3)
    # Within their clamps of +-20, so that both mean the same number.
    rows = [np.clip(row, -4, 4) for row in DATA[data](rng, LENGTHS)]
    scale = min(1.0, 15 / max(abs(float(row.sum())) for row in rows))
    batch = batch_of([row * scale for row in rows], rng)
    values = metrics(summarise(batch)).values
    spread = float(values["log_ratio_std"])
    for name, logged in TOOLS[tool](*padded(batch)).items():
        ours = as_logged(name, values[ours_for(tool, name)], batch.tokens)
        # float32 holds 6e-8 of the terms, which are near 1 where the result is near spread².
        assert float(logged) == pytest.approx(ours, rel=2e-4, abs=3e-7 * (1 + 1 / spread * 0.01)), name


def test_every_alias_of_the_four_tools_is_checked() -> None:
    rng = np.random.default_rng(3)
    # Either clipped first, a heuristic, or logged under a name that another metric carries.
    arrays = padded(batch_of(normal(0.1)(rng, LENGTHS), rng))
    known = {"sampling_importance_ratio (truncated)", "js_divergence_error (a heuristic with the same aim)"} | {
        "sampling/importance_sampling_ratio/max (after clipping)",
        "rollout_corr/chi2_token (uncentred)",
    }
    for tool, log in TOOLS.items():
        covered = {ours_for(tool, name) for name in log(*arrays)}
        for canonical, metric in METRICS.items():
            if tool in metric.aliases and metric.aliases[tool] not in known:
                assert canonical in covered, f"{tool}: {metric.aliases[tool]}"


def test_nemo_rl_calls_an_inverted_k3_a_kl() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(student_t2(rng, LENGTHS), rng)
    values = metrics(summarise(batch)).values
    logged = float(nemo_rl(*padded(batch))["policy_kl_error"])
    assert logged == pytest.approx(values["kl_unweighted_reverse_k3"], rel=1e-3)
    assert abs(logged - values["kl_reverse_k3"]) > 0.05 * logged


@pytest.mark.parametrize(("spread", "least_error"), [(1e-4, 0.05), (1e-5, 5.0)])
def test_float32_cancellation_is_theirs_not_ours(spread: float, least_error: float) -> None:
    """exp(d) - d - 1 in float32 subtracts numbers near 1: at close policies nothing of k3 = d²/2 is left."""
    rng = np.random.default_rng(3)
    batch = batch_of(normal(spread)(rng, [2_000] * 10), rng, spacing=spread)
    d = batch.train_logprobs_N.astype(np.longdouble) - batch.infer_logprobs_N
    exact = float(np.mean(np.expm1(d) - d))
    assert metrics(summarise(batch)).values["kl_k3"] == pytest.approx(exact, rel=1e-9)
    for tool, name in (
        ("verl", "rollout_corr/k3_kl"),
        ("TRL", "kl of experimental async_grpo"),
        ("prime-rl", "mismatch_kl"),
        ("NeMo-RL", "gen_kl_error"),
    ):
        logged = float(TOOLS[tool](*padded(batch))[name])
        # NeMo-RL subtracts the 1 first, which is exact near 1: it loses less.
        least = least_error / 10 if tool == "NeMo-RL" else least_error
        assert abs(logged - exact) > least * exact, f"{tool}: {logged} for {exact}"


def test_in_float64_their_formula_is_ours() -> None:
    rng = np.random.default_rng(3)
    batch = batch_of(normal(1e-3)(rng, LENGTHS), rng)
    rollout, train, mask = (array.double() if array.is_floating_point() else array for array in padded(batch))
    values = metrics(summarise(batch)).values
    for tool, log in TOOLS.items():
        for name, logged in log(rollout, train, mask).items():
            ours = as_logged(name, values[ours_for(tool, name)], batch.tokens)
            assert float(logged) == pytest.approx(ours, rel=1e-6, abs=1e-13), name


def test_other_tools_definitions_differ_where_the_alias_says_so() -> None:
    """ESS after verl's default clamp hides the tail that the unclamped one shows."""
    infer = np.full(1_000, -20.0, np.float32)
    train = infer.copy()
    train[0] = -5.0
    batch = Batch.from_arrays(BatchMeta(step=1), infer_logprobs=infer, train_logprobs=train)
    ratio = torch.tensor(train - infer).clamp(-20, 20).exp().clamp(max=2.0)
    clamped = float(1 / (ratio / ratio.mean()).square().mean())
    assert clamped > 0.99
    assert metrics(summarise(batch)).values["ess_token"] == pytest.approx(1e-3, rel=0.01)
