"""What other tools log, re-derived from their documented behaviour in torch, in their precision and under their keys.

Own arithmetic after the descriptions in each tool's sources, on padded tensors: rollout and training log-probs [B, T]
in float32 with 0.0 in the padding, and the mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tailwatch_collectors.batch import Batch

Tensor = torch.Tensor
Logged = dict[str, Tensor]

THRESHOLD = 2.0
"""Default upper bound of verl, ms-swift and slime."""


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


def per_sequence(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the sequences' means: the default reduction of slime and ROLL."""
    return masked_mean(values, mask, 1).mean()


def verl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """Off-policy metrics, token-level weights with an upper bound of 2, and the debug metrics."""
    d = train - rollout
    train_B, rollout_B = masked_mean(train, mask, 1), masked_mean(rollout, mask, 1)
    gap = rollout_B - train_B
    p, q = train.exp()[mask], rollout.exp()[mask]
    ratio = d.clamp(-20, 20).exp()
    weights = ratio.clamp(max=THRESHOLD) * mask
    normal = weights / (masked_mean(weights, mask) + 1e-8)
    return {
        "rollout_corr/kl": masked_mean(-d, mask),
        "rollout_corr/k3_kl": masked_mean(d.exp() - d - 1, mask),
        "rollout_corr/training_ppl": (-train_B).exp().mean(),
        "rollout_corr/rollout_ppl": (-rollout_B).exp().mean(),
        "rollout_corr/training_log_ppl": -train_B.mean(),
        "rollout_corr/rollout_log_ppl": -rollout_B.mean(),
        "rollout_corr/log_ppl_diff": gap.mean(),
        "rollout_corr/log_ppl_abs_diff": gap.abs().mean(),
        "rollout_corr/log_ppl_diff_max": gap.max(),
        "rollout_corr/log_ppl_diff_min": gap.min(),
        "rollout_corr/ppl_ratio": gap.exp().mean(),
        "rollout_corr/chi2_token": masked_mean(ratio.square(), mask) - 1,
        "rollout_corr/chi2_seq": (2 * (d * mask).sum(1).clamp(-20, 20)).exp().mean() - 1,
        "rollout_corr/rollout_is_mean": masked_mean(weights, mask),
        "rollout_corr/rollout_is_min": weights[mask].min(),
        "rollout_corr/rollout_is_max": weights[mask].max(),
        "rollout_corr/rollout_is_eff_sample_size": 1 / masked_mean(normal.square(), mask),
        "rollout_corr/rollout_is_ratio_fraction_high": masked_mean((ratio > THRESHOLD).float(), mask),
        "rollout_corr/rollout_is_ratio_fraction_low": masked_mean((ratio < 1 / THRESHOLD).float(), mask),
        "training/rollout_probs_diff_mean": (p - q).abs().mean(),
        "training/rollout_probs_diff_max": (p - q).abs().max(),
        "training/rollout_probs_diff_std": (p - q).abs().std(),
        "training/rollout_actor_probs_pearson_corr": torch.corrcoef(torch.stack((p, q)))[0, 1],
    }


def trl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """GRPOTrainer on one rank, with sequence_mask at 3."""
    d = (train - rollout)[mask]
    product = ((train - rollout) * mask).sum(1).exp()
    return {
        "sampling/sampling_logp_difference/mean": d.abs().mean(),
        "sampling/sampling_logp_difference/max": d.abs().max(),
        "sampling/importance_sampling_ratio/mean": torch.where(product > 3, 0.0, product).mean(),
    }


def trl_async(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """async_grpo: its old log-probs are the engine's."""
    d = (train - rollout)[mask]
    return {"kl": (d.exp() - d - 1).mean(), "ratio": d.exp().mean()}


def prime_rl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """Tokens of all micro-steps gathered."""
    d = (train - rollout)[mask]
    k3 = d.exp() - d - 1
    return {"mismatch_kl/all/mean": k3.mean(), "mismatch_kl/all/max": k3.max(), "trainer_mismatch_kl": k3.mean()}


def nemo_rl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """ClippedPGLossFn without a correction."""
    d = train - rollout
    mixture = (0.5 * train.exp() + 0.5 * rollout.exp()).log()
    sides = [(side - mixture).exp() - (side - mixture) - 1 for side in (train, rollout)]
    return {
        "train/gen_kl_error": masked_mean(d.exp() - 1 - d, mask),
        "train/policy_kl_error": masked_mean((-d).exp() - 1 + d, mask),
        "train/js_divergence_error": masked_mean((sides[0] + sides[1]) / 2, mask),
        "train/token_mult_prob_error": masked_mean(d.abs().exp(), mask),
        "train/sampling_importance_ratio": masked_mean(d.exp(), mask),
    }


def slime(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """The loss with --use-tis, and mis.py; per rollout, then over rollouts."""
    d = train - rollout
    train_B, rollout_B = masked_mean(train, mask, 1), masked_mean(rollout, mask, 1)
    gap = rollout_B - train_B
    return {
        "train/train_rollout_logprob_abs_diff": per_sequence(d.abs(), mask),
        "train/tis": per_sequence(d.exp(), mask),
        "train/tis_abs": per_sequence((d.exp() - 1).abs(), mask),
        "rollout/log_probs": train_B.mean(),
        "rollout/rollout_log_probs": rollout_B.mean(),
        "train/mis_kl": per_sequence(-d, mask),
        "train/mis_k3_kl": per_sequence(d.exp() - d - 1, mask),
        "train/mis_training_ppl": (-train_B).exp().mean(),
        "train/mis_rollout_ppl": (-rollout_B).exp().mean(),
        "train/mis_training_log_ppl": -train_B.mean(),
        "train/mis_rollout_log_ppl": -rollout_B.mean(),
        "train/mis_log_ppl_diff": gap.mean(),
        "train/mis_log_ppl_abs_diff": gap.abs().mean(),
        "train/mis_ppl_ratio": gap.exp().mean(),
        "train/mis_chi2_token": per_sequence(d.clamp(-20, 20).exp().square(), mask) - 1,
        "train/mis_chi2_seq": (2 * (d * mask).sum(1).clamp(-20, 20)).exp().mean() - 1,
    }


def miles(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """slime's, and an always-on k3 clamped per token."""
    d = train - rollout
    k3 = (d.exp() - d - 1).clamp(-10, 10)
    return {**slime(rollout, train, mask), "train/train_rollout_kl": per_sequence(k3, mask)}


def areal(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """grpo_loss_fn through the stats tracker; the policy inside the update is the training side."""
    d = (train - rollout)[mask]
    found: Logged = {}
    for name, values in (("direct", -d), ("taylor", d.square() / 2), ("dual", d.exp() - 1 - d)):
        key = f"ppo_actor/update/compute_logp/kl_div_{name}"
        found |= {f"{key}/avg": values.mean(), f"{key}/min": values.min(), f"{key}/max": values.max()}
    found["ppo_actor/update/behave_approx_kl/avg"] = d.mean()
    found["ppo_actor/update/old_logp/avg"] = rollout[mask].mean()
    found["ppo_actor/update/new_logp/avg"] = train[mask].mean()
    return found


def roll(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """Ratios at token and geometric level, and a filter that passes ratios from 0.8 to 1.25."""
    ratio = (train - rollout).exp()
    geometric = masked_mean(train - rollout, mask, 1).exp()
    passed = ((ratio >= 0.8) & (ratio <= 1.25)).float()
    return {
        "actor/train_infer_ratio_token_mean@sum": per_sequence(ratio, mask),
        "actor/train_infer_ratio_geometric_mean@sum": geometric.mean(),
        "actor/train_infer_diff_token_mean@sum": per_sequence(train.exp() - rollout.exp(), mask),
        "actor/train_infer_token_ratio_mask_mean@sum": passed.sum() / mask.sum(),
        "actor/train_infer_final_mask_mean": masked_mean(passed, mask),
    }


def ms_swift(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """One rank; verl's names, k3 clamped at 10 per token, chi2_seq geometric, ESS clamped from both sides."""
    theirs = {
        key.replace("rollout_corr/", "rollout_correction/"): value
        for key, value in verl(rollout, train, mask).items()
        if key.startswith("rollout_corr/") and "rollout_is" not in key
    }
    d = (train - rollout).clamp(-20, 20)
    weights = d.exp().clamp(1 / THRESHOLD, THRESHOLD)
    normal = weights / masked_mean(weights, mask)
    return theirs | {
        "rollout_correction/k3_kl": masked_mean((d.exp() - d - 1).clamp(-10, 10), mask),
        "rollout_correction/chi2_seq": masked_mean(d, mask, 1).exp().square().mean() - 1,
        "rollout_correction/is_weight_mean": masked_mean(d.exp().clamp(max=THRESHOLD), mask),
        "rollout_correction/ess": 1 / masked_mean(normal.square(), mask),
    }


def skyrl(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """The driver's figures, and one micro-batch of the correction's."""
    size = (train - rollout).abs()[mask]
    ratio = (train - rollout).clamp(-20, 20).exp()
    return {
        "policy/rollout_train_logprobs_abs_diff_mean": size.mean(),
        "policy/rollout_train_logprobs_abs_diff_max": size.max(),
        "policy/rollout_train_logprobs_abs_diff_std": size.std(),
        "policy/minibatch_rollout_logprobs_abs_diff_mean": size.mean(),
        "policy/loss_metrics/is_ratio_mean": masked_mean(ratio, mask),
        "policy/loss_metrics/is_ratio_max": (ratio * mask).max(),
        "policy/loss_metrics/is_ratio_min": (ratio * mask).min(),
        "policy/loss_metrics/is_ratio_std": (ratio * mask).std(),
    }


def openrlhf(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """PolicyLoss with is_correction_enable, one micro-batch."""
    return {"vllm_kl": ((rollout - train) * mask).sum() / mask.sum()}


def open_instruct(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """The debug metrics of one packed micro-batch."""
    size = (train - rollout).abs()[mask]
    return {
        "debug/vllm_vs_local_logprob_diff_mean": size.mean(),
        "debug/vllm_vs_local_logprob_diff_max": size.max(),
        "debug/vllm_vs_local_logprob_diff_std": size.std(),
        "debug/vllm_local_reverse_kl": (rollout.exp() * (rollout - train))[mask].mean(),
    }


def tinker(rollout: Tensor, train: Tensor, mask: Tensor) -> Logged:
    """compute_kl_sample_train."""
    back = (rollout - train)[mask]
    return {
        "optim/kl_sample_train_v1": back.mean(),
        "optim/kl_sample_train_v2": 0.5 * back.square().mean(),
        "optim/entropy": -rollout[mask].mean(),
    }


TOOLS: dict[str, Callable[[Tensor, Tensor, Tensor], Logged]] = {
    "verl": verl,
    "trl": trl,
    "trl-async": trl_async,
    "prime-rl": prime_rl,
    "nemo-rl": nemo_rl,
    "slime": slime,
    "miles": miles,
    "areal": areal,
    "roll": roll,
    "ms-swift": ms_swift,
    "skyrl": skyrl,
    "openrlhf": openrlhf,
    "open-instruct": open_instruct,
    "tinker": tinker,
}
