"""ms-swift 4.6.0: rlhf_trainers/grpo_trainer.py. verl's names, other definitions of two of them; ranks are averaged."""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import (
    K3_RESOLUTION,
    RANK_MEANS,
    SEQUENCE_MEANS,
    Tool,
    near,
    none,
)

_CLAMP = "d at ±20"

MS_SWIFT = Tool(
    id="ms-swift",
    name="ms-swift",
    version="4.6.0",
    prefixes=("train/",),
    aliases=(
        near("rollout_correction/kl", "kl_k1", pooling=RANK_MEANS),
        near("rollout_correction/kl", "log_ratio_mean", "negate", pooling=RANK_MEANS),
        near(
            "rollout_correction/k3_kl", "kl_k3", pooling=RANK_MEANS, clamp="k3 of a token at 10",
            resolution=K3_RESOLUTION,
        ),
        near("rollout_correction/training_ppl", "train_ppl", pooling=RANK_MEANS),
        near("rollout_correction/rollout_ppl", "infer_ppl", pooling=RANK_MEANS),
        near("rollout_correction/training_log_ppl", "train_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
        near("rollout_correction/rollout_log_ppl", "infer_logprob_mean", "negate", pooling=SEQUENCE_MEANS),
        near("rollout_correction/log_ppl_diff", "log_ppl_gap", pooling=RANK_MEANS),
        near("rollout_correction/log_ppl_abs_diff", "log_ppl_gap_abs", pooling=RANK_MEANS),
        near("rollout_correction/log_ppl_diff_max", "log_ppl_gap_max", pooling="mean of rank maxima"),
        near("rollout_correction/log_ppl_diff_min", "log_ppl_gap_min", pooling="mean of rank minima"),
        near(
            "rollout_correction/ppl_ratio", "geometric_ratio_mean", "reciprocal", pooling=RANK_MEANS,
            note="mean of e^-g; one over it is below the mean of e^g by about the variance of g",
        ),
        near(
            "rollout_correction/chi2_token", "chi2_token_uncentred", pooling=RANK_MEANS, clamp=_CLAMP,
            resolution=K3_RESOLUTION,
        ),
        none(
            "rollout_correction/chi2_seq",
            "E[e^2g] - 1 of the geometric ratio; verl's metric of this name, and ours, is of the product ratio",
        ),
        near(
            "rollout_correction/is_weight_mean", "ratio_mean", pooling=RANK_MEANS,
            clamp="as rollout_importance_sampling_mode says", note="geometric ratios in the sequence modes",
        ),
        near(
            "rollout_correction/ess", "ess_token", pooling=RANK_MEANS, clamp="w to [1/threshold, threshold]",
            note="hides the tail it should show",
        ),
        none("rollout_correction/clipped_frac", "share beyond the configured threshold"),
        none("kl", "against the reference policy"),
        near("entropy/mean", "entropy_train", pooling=RANK_MEANS),
        near("reward", "reward_mean", pooling=RANK_MEANS),
        none("clip_ratio/*", "compares two training policies (before and after updates), not training with inference"),
    ),
)  # fmt: skip
