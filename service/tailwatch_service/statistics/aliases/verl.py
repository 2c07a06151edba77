"""verl 0.9.1: trainer/ppo/rollout_corr_helper.py and utils/debug/metrics.py, on the driver, over the whole batch.

Logged in decoupled mode only; bypass mode computes none of it. Means divide by the tokens in the mask + 1e-8.
"""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, SEQUENCE_MEANS, Tool, near, none, same

_CLAMP = "d at ±20"
_DRIFT = "compares two training policies (before and after updates), not training with inference"
_REJECTION = "a statistic of the rejection criterion, whose form is configured"
_TRUNCATED = "of weights after truncation at the configured threshold"

VERL = Tool(
    id="verl",
    name="verl",
    version="0.9.1",
    aliases=(
        same("rollout_corr/kl", "kl_k1"),
        same("rollout_corr/kl", "log_ratio_mean", "negate"),
        same("rollout_corr/k3_kl", "kl_k3", resolution=K3_RESOLUTION),
        same("rollout_corr/training_ppl", "train_ppl"),
        same("rollout_corr/rollout_ppl", "infer_ppl"),
        near("rollout_corr/training_log_ppl", "train_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
        near("rollout_corr/rollout_log_ppl", "infer_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
        same("rollout_corr/log_ppl_diff", "log_ppl_gap"),
        same("rollout_corr/log_ppl_abs_diff", "log_ppl_gap_abs"),
        same("rollout_corr/log_ppl_diff_max", "log_ppl_gap_max"),
        same("rollout_corr/log_ppl_diff_min", "log_ppl_gap_min"),
        near(
            "rollout_corr/ppl_ratio", "geometric_ratio_mean", "reciprocal",
            note="mean of e^-g; one over it is below the mean of e^g by about the variance of g",
        ),
        same("rollout_corr/chi2_token", "chi2_token_uncentred", clamp=_CLAMP, resolution=K3_RESOLUTION),
        near(
            "rollout_corr/chi2_token", "chi2_token", clamp=_CLAMP, resolution=K3_RESOLUTION,
            note="E[w²] - 1; ours is E[(w-1)²], smaller by 2 (E[w] - 1)",
        ),
        same("rollout_corr/chi2_seq", "chi2_sequence_log10p1", "log10p1", clamp="S at ±20"),
        near(
            "rollout_corr/rollout_is_mean", "ratio_mean", clamp="w at the configured threshold",
            note="product ratios of sequences where rollout_is is sequence",
        ),
        near(
            "rollout_corr/rollout_is_min", "ratio_min", clamp=_CLAMP,
            note="0 where IcePop masks; the smallest product ratio where rollout_is is sequence",
        ),
        none("rollout_corr/rollout_is_max", "the largest weight after truncation, so at most the threshold"),
        none("rollout_corr/rollout_is_std", f"spread {_TRUNCATED}"),
        near(
            "rollout_corr/rollout_is_eff_sample_size", "ess_token", clamp="w to [0, threshold]",
            note="hides the tail it should show",
        ),
        near(
            "rollout_corr/rollout_is_ratio_fraction_high", "above_2",
            note="at the configured threshold (default 2), of sequences where rollout_is is sequence",
        ),
        near(
            "rollout_corr/rollout_is_ratio_fraction_low", "below_1_over_2",
            note="at the configured threshold (default 1/2), of sequences where rollout_is is sequence",
        ),
        none("rollout_corr/rollout_is_seq_fraction_high", "shares of sequences by their arithmetic mean weight"),
        none("rollout_corr/rollout_is_seq_fraction_low", "shares of sequences by their arithmetic mean weight"),
        none("rollout_corr/rollout_is_seq_*", f"over sequences, {_TRUNCATED}"),
        none("rollout_corr/rollout_is_oob_ratio", "share outside the configured IcePop bounds"),
        none("rollout_corr/rollout_is_batch_norm_factor", "the factor that normalises weights to mean 1"),
        same("rollout_corr/rollout_rs_masked_fraction", "rejected_share"),
        none("rollout_corr/rollout_rs_seq_masked_fraction", "share of sequences; rejected_share counts tokens"),
        none("rollout_corr/rollout_rs_*", _REJECTION),
        same("training/rollout_probs_diff_mean", "prob_diff_abs_mean"),
        same("training/rollout_probs_diff_max", "prob_diff_abs_max"),
        near("training/rollout_probs_diff_std", "prob_diff_abs_std", note="divides by N - 1"),
        same("training/rollout_actor_probs_pearson_corr", "prob_pearson"),
        none("training/rollout_probs_diff_valid", "a flag"),
        near(
            "training/off_policy/trajectory_staleness/mean", "lag_mean",
            level="per trajectory, by the newest weights that sampled it",
        ),
        near(
            "training/off_policy/trajectory_staleness_worst/max", "lag_max",
            level="per trajectory, by the oldest weights that sampled it",
        ),
        near(
            "training/off_policy/trajectory_staleness_worst/mean", "lag_oldest_mean",
            note="counts from the trainer's step, not from a version of the weights",
        ),
        none("training/off_policy/**", "spread or count of staleness per trajectory; ours is per token"),
        none("fully_async/**", "counts of the asynchronous queue"),
        none("actor/ppo_kl", _DRIFT),
        none("actor/pg_clipfrac", _DRIFT),
        none("actor/pg_clipfrac_lower", _DRIFT),
        none("actor/kl_loss", "against the reference policy"),
        near("actor/entropy", "entropy_train", pooling="as loss_agg_mode says; over tokens by default"),
    ),
)  # fmt: skip
