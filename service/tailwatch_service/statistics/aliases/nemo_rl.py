"""NeMo-RL at commit 7ea279ab (2026-08-22): algorithms/loss/loss_functions.py.

Sums of micro-batches are divided by the valid tokens of the whole batch.
"""

from __future__ import annotations

from tailwatch_service.statistics.aliases.alias import K3_RESOLUTION, Tool, near, none, same

_TYPE = "with reference_policy_kl_type k3, the default"
_DRIFT = "compares two training policies (before and after updates), not training with inference"
_PER_SEQUENCE = "of a sequence's own multiplicative error; ours is over all tokens"

NEMO_RL = Tool(
    id="nemo-rl",
    name="NeMo-RL",
    version="commit 7ea279ab",
    prefixes=("train/",),
    aliases=(
        same("gen_kl_error", "kl_k3", resolution=K3_RESOLUTION, note=_TYPE),
        same(
            "policy_kl_error", "kl_unweighted_reverse_k3", resolution=K3_RESOLUTION,
            note=f"documented there as KL(train || infer), which it is not; {_TYPE}",
        ),
        near(
            "js_divergence_error", "js", resolution=K3_RESOLUTION,
            note="averages a k3-shaped term of each side over inference samples; equal to second order in d only",
        ),
        same("token_mult_prob_error", "mult_prob_error"),
        near(
            "sampling_importance_ratio", "ratio_mean", clamp="w as truncated_importance_sampling_type says",
            note="product ratios of sequences with sequence_level_importance_ratios",
        ),
        none("is_oob_ratio", "share outside the configured bounds"),
        near("approx_entropy", "entropy_train", note="from the sampled tokens' own log-probs, by importance weights"),
        none("probs_ratio", _DRIFT),
        none("probs_ratio_*", _DRIFT),
        none("kl_penalty", "against the reference policy"),
        none("max_seq_mult_prob_error", _PER_SEQUENCE),
        none("mean_seq_mult_prob_error", _PER_SEQUENCE),
        none("min_seq_mult_prob_error", _PER_SEQUENCE),
        none("*_after_mask", _PER_SEQUENCE),
        none("num_masked_seqs_by_logprob_error", "a count of sequences; rejected_share counts tokens"),
        none("masked_correct_pct", "a share of correct answers among masked sequences"),
        near("avg_trajectory_age", "lag_mean", level="per trajectory"),
        none("buffer_size", "a count of the queue"),
    ),
)  # fmt: skip
